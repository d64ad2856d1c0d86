"""Which translation of a row is chosen and which rejected: by its scores, or by a person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.candidates import REFERENCE, CandidateRow
from cpo_ds.data.formats import compares_with_reference
from cpo_ds.errors import UserError
from cpo_ds.scoring.metrics import short_name

BEST_EACH = "best-each"  # the other pairing is best-worst
EQUAL = "equal scores"  # why there is no pair


@dataclass(frozen=True)
class Rated:
    """A row and its scores by the metrics that choose.

    `means` holds the translations with a score by every metric, in the order that breaks ties: the
    reference first, then as in the row. `unscored` counts the others; the reference is among
    neither where it is left out, because a metric compares with it.
    """

    row: CandidateRow
    scores: Mapping[str, Mapping[str, float]]  # {metric: {name: score}}
    means: Mapping[str, float]
    unscored: int
    leaves_reference_out: bool


@dataclass(frozen=True)
class Pair:
    """A preference between two translations of a row, by their names there."""

    rated: Rated
    chosen_system: str
    rejected_system: str
    is_human: bool = False

    @property
    def direction(self) -> str:
        """Like `"en-de"`."""
        return self.rated.row.language_pair

    @property
    def source(self) -> str:
        """The source text."""
        return self.rated.row.source

    @property
    def chosen(self) -> str:
        """The text to prefer."""
        return self.rated.row.translations[self.chosen_system]

    @property
    def rejected(self) -> str:
        """The text to avoid."""
        return self.rated.row.translations[self.rejected_system]

    @property
    def margin(self) -> float | None:
        """How far the chosen text's mean score is above the rejected one's; None without scores."""
        means = self.rated.means
        if self.chosen_system not in means or self.rejected_system not in means:
            return None
        return means[self.chosen_system] - means[self.rejected_system]


def scorer_name(metrics: Sequence[str]) -> str:
    """What `data.scorer` calls the mean of metrics, like `kiwi_xcomet`."""
    names = [short_name(metric) for metric in metrics]
    return "kiwi_xcomet" if sorted(names) == ["kiwi", "xcomet"] else "_".join(names)


def rate(row: CandidateRow, metrics: Sequence[str]) -> Rated:
    """Means over the metrics. Raises `UserError`, naming the line, for what is not a number."""
    names = list(row.translations)
    scorers = row.values.get("scorers")
    leaves_out = any(compares_with_reference(scorers, metric) for metric in metrics)
    leaves_out &= row.reference is not None
    if leaves_out:
        names.remove(REFERENCE)
    all_scores = scores_of(row)
    scores: dict[str, dict[str, float]] = {}
    for metric in metrics:
        values = all_scores.get(metric, {})
        there = [name for name in names if values.get(name) is not None]
        scores[metric] = {name: _number(row, metric, name, values[name]) for name in there}
    means = {
        name: sum(values[name] for values in scores.values()) / len(scores)
        for name in names
        if scores and all(name in values for values in scores.values())
    }
    return Rated(row, scores, means, len(names) - len(means), leaves_out)


def scores_of(row: CandidateRow) -> dict[str, dict[str, Any]]:
    """`{metric: {name: score}}` of a row, without nulls: parquet gives every row all names."""
    scores = row.values.get("scores") or {}
    if not isinstance(scores, dict) or not all(
        values is None or isinstance(values, dict) for values in scores.values()
    ):
        raise UserError(
            f"{row.where}: field scores is not an object of objects, "
            '{"metric": {"name": number}}, as `cpo-ds prepare score` writes it.'
        )
    return {metric: values for metric, values in scores.items() if values}


def _number(row: CandidateRow, metric: str, name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise UserError(
            f"{row.where}: field scores.{metric}.{name} is not a finite number but {value!r:.40}; "
            "correct it, or remove that score."
        )
    return float(value)


def human_preference(row: CandidateRow) -> tuple[str, str] | None:
    """The names that a person prefers and rejects, `{"chosen": name, "rejected": name}`, if any.

    Raises `UserError` for names that are not the row's.
    """
    preference = row.values.get("preference")
    if preference is None:
        return None
    if not isinstance(preference, dict):
        raise UserError(
            f"{row.where}: field preference is not an object but {preference!r:.40}; write "
            '{"chosen": name, "rejected": name}.'
        )
    names = list(row.translations)
    for side in ("chosen", "rejected"):
        if preference.get(side) not in names:
            raise UserError(
                f"{row.where}: field preference.{side} is {preference.get(side)!r:.40}; write one "
                f"of the row's translations: {', '.join(names)}."
            )
    chosen, rejected = preference["chosen"], preference["rejected"]
    if chosen == rejected:
        raise UserError(
            f"{row.where}: field preference names {chosen!r} as chosen and as rejected; correct "
            "it, or remove the field."
        )
    return chosen, rejected


def choose(rated: Rated, pairing: str) -> list[Pair] | str:
    """The row's pairs, one or (best against each other one) several; or why it has none.

    A person's preference goes before the scores. Of equal scores the first counts.
    """
    preference = human_preference(rated.row)
    if preference:
        return [Pair(rated, *preference, is_human=True)]
    means = rated.means
    if len(means) < 2:
        return "fewer than two scored translations"
    best = max(means, key=means.__getitem__)  # the first of several
    worst = min(means, key=means.__getitem__)
    if pairing == BEST_EACH:
        return [Pair(rated, best, other) for other in means if other != best]
    return [Pair(rated, best, worst)] if best != worst else EQUAL
