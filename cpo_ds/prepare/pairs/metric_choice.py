"""Which metrics choose: those asked for, or else those that the rows have scores by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.formats import LEXICAL, MEAN_SPELLINGS
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.prepare.pairs.choose import human_preference, rate, scores_of
from cpo_ds.scoring.metrics import short_name

_USUAL = "kiwi+xcomet"  # the XXL models, as for ALMA-R
_OTHER_SCALE = "from 0 to 100, not to be averaged with scores from 0 to 1"


@dataclass(frozen=True)
class Taken:
    """Metrics by their names in the rows' scores, and why these and not others.

    `because` is None for metrics that were asked for, and for the usual two.
    """

    metrics: tuple[str, ...]
    because: str | None = None  # like "all 4 rows have scores by it"
    left_out: Mapping[str, str] = field(default_factory=dict)  # {name: why}


def take_metrics(wanted: str | None, rows: Sequence[CandidateRow]) -> Taken:
    """The metrics of `wanted`, like `kiwi+xcomet`; if it is None, those that the rows suggest.

    These are KIWI-XXL and XCOMET-XXL, or their stored mean, if any row has scores by them; else
    all by which every row has scores that needs some. None at all if no row needs scores. Raises
    `UserError` if rows need scores and there is no such metric.
    """
    if wanted is not None:
        return Taken(find_metrics(wanted, rows))
    there = list(dict.fromkeys(name for row in rows for name in _scored_by(row)))
    usual = _usual(there)
    if usual:
        return Taken(usual)
    if not there and not all(human_preference(row) for row in rows):
        raise _no_scores()
    needing = [row for row in rows if _needs_scores(row)]
    asked = needing or rows
    counts = {name: sum(bool(rate(row, (name,)).means) for row in asked) for name in there}
    left_out = {
        name: f"scores in {count} of {len(asked)} rows"
        for name, count in counts.items()
        if count < len(asked)
    }
    metrics = [name for name in there if name not in left_out]
    if not metrics and needing:
        found = ", ".join(f"{name} in {count}" for name, count in counts.items())
        raise UserError(
            f"no metric has scores in all of the {len(needing)} rows that need them ({found}); "
            "choose by --metrics, several joined by +, or score all rows by one."
        )
    left_out |= _not_to_average(metrics, asked)
    metrics = [name for name in metrics if name not in left_out]
    return Taken(tuple(metrics), _because(len(metrics), len(asked), len(rows)), left_out)


def _usual(there: Sequence[str]) -> tuple[str, ...]:
    """The names of KIWI-XXL and XCOMET-XXL, or that of their mean; empty if they are not there."""
    if _USUAL in there or {"kiwi", "xcomet"} <= {short_name(name) for name in there}:
        return _named(_USUAL, there)
    return tuple(name for name in MEAN_SPELLINGS if name in there)[:1]


def _scored_by(row: CandidateRow) -> list[str]:
    """Metrics with a score of the row that is not null."""
    scores = scores_of(row)
    return [name for name in scores if any(one is not None for one in scores[name].values())]


def _needs_scores(row: CandidateRow) -> bool:
    return len(row.translations) > 1 and not human_preference(row)


def _not_to_average(metrics: Sequence[str], rows: Sequence[CandidateRow]) -> dict[str, str]:
    """Metrics that would spoil a mean of all, and why: of another scale, or the same once more."""
    lexical = [
        name for name in metrics if any(is_lexical(row.values.get("scorers"), name) for row in rows)
    ]
    left_out = dict.fromkeys(lexical, _OTHER_SCALE) if len(lexical) < len(metrics) else {}
    first: dict[str, str] = {}
    for name in metrics:
        same = first.setdefault(short_name(name), name)
        if same != name:
            left_out[name] = f"the same metric as {same}"
    return left_out


def _because(metrics: int, asked: int, rows: int) -> str | None:
    if not metrics:
        return None
    them = "it" if metrics == 1 else "them"
    if asked < rows:
        return f"all {asked} rows that need scores have some by {them}"
    return f"all {asked} rows have scores by {them}"


def is_lexical(scorers: Any, metric: str) -> bool:
    """Whether a metric is chrF or BLEU, by a row's `scorers` as scoring records them."""
    record = scorers.get(metric) if isinstance(scorers, dict) else None
    model = record.get("model") if isinstance(record, dict) else None
    return str(model or metric).lower() in LEXICAL


def find_metrics(wanted: str, rows: Iterable[CandidateRow]) -> tuple[str, ...]:
    """The names under which the metrics of `wanted`, like `kiwi+xcomet`, are in the rows' scores.

    KIWI-XXL and XCOMET-XXL are found under any of their usual names. Empty where every row has a
    person's preference and none has scores. Raises `UserError` for a metric that no row has.
    """
    rows = list(rows)
    there = list(dict.fromkeys(metric for row in rows for metric in scores_of(row)))
    if not there and all(human_preference(row) for row in rows):
        return ()
    return _named(wanted, there)


def _named(wanted: str, there: Sequence[str]) -> tuple[str, ...]:
    if wanted in MEAN_SPELLINGS and wanted not in there:
        wanted = _USUAL
    parts = [wanted] if wanted in there else [part.strip() for part in wanted.split("+")]
    metrics = tuple(_find(part, there) for part in parts)
    names = [short_name(metric) for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--metrics {wanted} names {name} twice; name each metric once.")
    return metrics


def _find(part: str, there: Sequence[str]) -> str:
    if part in there:
        return part
    same = [metric for metric in there if short_name(metric) == short_name(part)]
    if same:
        return same[0]
    if not there:
        raise _no_scores()
    hint = did_you_mean(part, there, least_likeness=0.6)
    raise UserError(
        f"no row has a score by {part!r}{hint}; set --metrics to one of those there are, or "
        f"several joined by +: {', '.join(there)}."
    )


def _no_scores() -> UserError:
    return UserError("no row of --input has scores; make some with `cpo-ds prepare score`.")
