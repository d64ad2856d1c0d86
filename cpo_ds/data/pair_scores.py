"""Scores of the completions of a row, for objectives that need them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from cpo_ds.data.json_text import finite, shown
from cpo_ds.data.sameness import same_score
from cpo_ds.data.sources import RawRow

CHOSEN_SCORE, REJECTED_SCORE = "chosen_score", "rejected_score"
ABOVE = "a rejected completion scores above the chosen one"  # why there is no pair
_LARGEST = 1e30  # of a score: float32 must hold differences of scores, and products of these
_OTHER_NAMES = {
    "score_chosen": CHOSEN_SCORE,
    "chosen_scores": CHOSEN_SCORE,
    "chosen_rating": CHOSEN_SCORE,
    "score_rejected": REJECTED_SCORE,
    "rejected_scores": REJECTED_SCORE,
    "rejected_rating": REJECTED_SCORE,
}


def scores_of(raw: RawRow, count: int, *, is_many: bool) -> tuple[float, ...] | None:
    """The scores of the chosen and of `count` rejected completions; None if the row has none.

    `is_many` says that the rejected ones are a list, which takes a list of scores. Scores that
    differ by no more than rounding become equal, and all are numbers that float32 holds exactly.
    Raises `UserError` for scores that do not fit the completions, or are no finite numbers.
    """
    chosen, rejected = raw.values.get(CHOSEN_SCORE), raw.values.get(REJECTED_SCORE)
    has_chosen = not _is_missing([chosen])
    has_rejected = not _is_missing(rejected if isinstance(rejected, list) else [rejected])
    if not has_chosen and not has_rejected:
        return None
    for field, is_there in ((CHOSEN_SCORE, has_chosen), (REJECTED_SCORE, has_rejected)):
        if not is_there:
            other = REJECTED_SCORE if field == CHOSEN_SCORE else CHOSEN_SCORE
            raise raw.error(field, f"is missing, but the row has {other}; give both or none")
    named = [(chosen, CHOSEN_SCORE), (rejected, REJECTED_SCORE)]
    if is_many:
        if not isinstance(rejected, list):
            problem = f"is {shown(rejected)}, but rejected is a list; give a list"
            raise raw.error(REJECTED_SCORE, problem)
        if len(rejected) != count:
            problem = f"has {len(rejected)} scores, but rejected has {count} completions"
            raise raw.error(REJECTED_SCORE, problem)
        named[1:] = [(score, f"{REJECTED_SCORE}[{i}]") for i, score in enumerate(rejected)]
    return _leveled([_number(raw, *one) for one in named])


def float32_scores(raw: RawRow, scores: Sequence[float]) -> tuple[float, ...]:
    """Scores that picked the texts of a row, as `scores_of` gives them.

    Raises `UserError` for numbers that are too large.
    """
    for score in scores:
        if abs(score) > _LARGEST:
            raise raw.error("scores", f"give a text {score:g}; give it a smaller one")
    return _leveled(scores)


def not_above(scores: Sequence[float]) -> list[int]:
    """The numbers of the rejected completions that do not score above the chosen one."""
    return [number for number, score in enumerate(scores[1:]) if score <= scores[0]]


def unscored_row(raw: RawRow) -> str:
    """How a message names a row without scores, with the fields to rename if it has such."""
    renamed = [(old, new) for old, new in _OTHER_NAMES.items() if raw.values.get(old) is not None]
    changes = " and ".join(f"{old} to {new}" for old, new in renamed)
    return raw.where + (f" (rename {changes})" if changes else "")


def _is_missing(values: Iterable[Any]) -> bool:
    """Whether all values are null, or cells of a csv without a text."""
    return all(value is None or (isinstance(value, str) and not value.strip()) for value in values)


def _number(raw: RawRow, value: Any, field: str) -> float:
    """A score. Raises `UserError` unless it is a finite number, or the text of one as in a csv."""
    given = value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise raw.error(field, f"is not a number but {shown(given)}")
    number = finite(value)
    if number is None or abs(number) > _LARGEST:
        raise raw.error(field, f"is {shown(given)}; give it a finite number or remove the row")
    return number


def _leveled(scores: Sequence[float]) -> tuple[float, ...]:
    """The scores in float32's precision, and those equal that differ by no more than rounding."""
    leveled, head = list(scores), max(scores)
    for number in sorted(range(len(scores)), key=scores.__getitem__, reverse=True):
        if not same_score(scores[number], head):
            head = scores[number]
        leveled[number] = head
    packing = f"{len(scores)}f"
    return struct.unpack(packing, struct.pack(packing, *leveled))
