"""The metrics that choose: those of `--metrics`, or those that the rows have scores by."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.formats import LEXICAL, MEAN_SPELLINGS
from cpo_ds.data.scorers import lower_is_better
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.prepare.pairs.choose import human_preference, rate, scores_of
from cpo_ds.scoring.metrics import short_name

_ALMA_R = "kiwi+xcomet"  # the XXL models that chose the pairs of ALMA-R-Preference
# Scales that are not to be averaged with scores from 0 to 1.
_LIKENESS = "from 0 to 100, not to be averaged with scores from 0 to 1"
_ERRORS = "from 25 down to 0, not to be averaged with scores from 0 to 1"


def add_metrics_option(parser: argparse.ArgumentParser, about: str) -> None:
    """Declares `--metrics`, also as `--metric`, its name in commands that compute scores."""
    parser.add_argument(
        "--metrics",
        "--metric",
        action="append",
        metavar="kiwi+xcomet",
        help=f"{about}; joined by +, or the option repeated",
    )


def joined_metrics(arguments: argparse.Namespace) -> str | None:
    """The metrics of `--metrics`, like `kiwi+xcomet`; None without the option."""
    return None if arguments.metrics is None else "+".join(arguments.metrics)


@dataclass(frozen=True)
class MetricChoice:
    """Metrics by their names in the rows' scores, the reason for them, and those left out.

    `because` is None for metrics that the user named, and for the two of ALMA-R.
    """

    metrics: tuple[str, ...]
    because: str | None = None  # like "all 4 rows have scores by it"
    left_out: Mapping[str, str] = field(default_factory=dict)  # {name: reason}


@dataclass
class Mentions:
    """The metrics that rows mention, in the order of the rows, and counts of these rows.

    `named` are the metrics in the rows' scores, `scoring` those with a score that is not null.
    """

    named: dict[str, None] = field(default_factory=dict)  # as an ordered set
    scoring: dict[str, None] = field(default_factory=dict)
    rows: int = 0
    by_person: int = 0  # rows with a person's preference
    needing: int = 0  # rows that only scores can decide

    def add(self, row: CandidateRow) -> None:
        """Counts a row. Raises `UserError` if its scores or its preference are malformed."""
        scores = scores_of(row)
        self.named |= dict.fromkeys(scores)
        self.scoring |= dict.fromkeys(
            name for name in scores if any(s is not None for s in scores[name].values())
        )
        self.rows += 1
        self.by_person += human_preference(row) is not None
        self.needing += _needs_scores(row)

    @property
    def needs_no_metric(self) -> bool:
        """Whether people chose in all rows."""
        return self.by_person == self.rows


def choose_metrics(
    wanted: str | None, rows: Iterable[CandidateRow], mentions: Mentions
) -> MetricChoice:
    """The metrics of `wanted`, like `kiwi+xcomet`; if it is None, those that the rows suggest.

    If the rows have scores by KIWI-XXL and XCOMET-XXL, or by their stored mean, these are taken. It
    is enough if some rows have them. Otherwise all metrics are taken that have scores in every row
    that needs scores. If no row needs scores, there may be none. Raises `UserError` if rows need
    scores and no metric has scores in all of them. `rows` are iterated once at most; `mentions`
    are theirs.
    """
    # The user's metrics, or the two of ALMA-R.
    if wanted is not None:
        return MetricChoice(find_metrics(wanted, mentions))
    known = list(mentions.scoring)
    of_alma_r = _alma_r_metrics(known)
    if of_alma_r:
        return MetricChoice(of_alma_r)
    if not known and not mentions.needs_no_metric:
        raise _no_scores()

    # Metrics that all rows have scores by, apart from rows that need no scores.
    counted = (row for row in rows if _needs_scores(row)) if mentions.needing else rows
    num_counted = mentions.needing or mentions.rows
    counts, scales = _count(known, counted)
    left_out = {
        name: f"scores in {count} of {num_counted} rows"
        for name, count in counts.items()
        if count < num_counted
    }
    metrics = [name for name in known if name not in left_out]
    if not metrics and mentions.needing:
        by_metric = ", ".join(f"{name} in {count}" for name, count in counts.items())
        raise UserError(
            f"no metric has scores in all of the {num_counted} rows that need them ({by_metric}); "
            "choose by --metrics, several joined by +, or score all rows by one."
        )

    # A mean of all of these must make sense.
    left_out |= _not_to_average(metrics, scales)
    metrics = [name for name in metrics if name not in left_out]
    because = _because(len(metrics), num_counted, mentions.rows)
    return MetricChoice(tuple(metrics), because, left_out)


def _count(
    metrics: Sequence[str], rows: Iterable[CandidateRow]
) -> tuple[dict[str, int], dict[str, str]]:
    """The number of rows with scores by each metric, and metrics with another scale than 0 to 1."""
    counts = dict.fromkeys(metrics, 0)
    scales: dict[str, str] = {}
    for row in rows:
        for name in metrics:
            counts[name] += bool(rate(row, (name,)).means)
            if is_lexical(row.values.get("scorers"), name):
                scales[name] = _LIKENESS
            elif lower_is_better(row.values.get("scorers"), name):
                scales[name] = _ERRORS
    return counts, scales


def _alma_r_metrics(known: Sequence[str]) -> tuple[str, ...]:
    """KIWI-XXL and XCOMET-XXL by their names among `known`, or their mean; empty without them."""
    if _ALMA_R in known or {"kiwi", "xcomet"} <= {short_name(name) for name in known}:
        return _named(_ALMA_R, known)
    return tuple(name for name in MEAN_SPELLINGS if name in known)[:1]


def _needs_scores(row: CandidateRow) -> bool:
    """Whether only scores can choose in this row."""
    return len(row.translations) > 1 and not human_preference(row)


def _not_to_average(metrics: Sequence[str], scales: Mapping[str, str]) -> dict[str, str]:
    """Metrics to leave out of a mean, with the reason: another scale, or the same metric again.

    `scales` are those of metrics with another scale than 0 to 1. If all have another one, errors
    go before likeness to the reference.
    """
    left_out = {name: scales[name] for name in metrics if name in scales}
    if len(left_out) == len(metrics):
        has_errors = _ERRORS in left_out.values()
        left_out = {n: s for n, s in left_out.items() if has_errors and s == _LIKENESS}
    first: dict[str, str] = {}
    for name in metrics:
        same = first.setdefault(short_name(name), name)
        if same != name:
            left_out[name] = f"the same metric as {same}"
    return left_out


def _because(num_metrics: int, num_needing: int, num_rows: int) -> str | None:
    """The reason for the metrics, as a part of a sentence."""
    if not num_metrics:
        return None
    them = "it" if num_metrics == 1 else "them"
    if num_needing < num_rows:
        return f"all {num_needing} rows that need scores have some by {them}"
    return f"all {num_needing} rows have scores by {them}"


def is_lexical(scorers: Any, metric: str) -> bool:
    """Whether a metric is chrF or BLEU, judged by a row's `scorers` and else by its name."""
    record = scorers.get(metric) if isinstance(scorers, dict) else None
    model = record.get("model") if isinstance(record, dict) else None
    return str(model or metric).lower() in LEXICAL


def find_metrics(wanted: str, mentions: Mentions) -> tuple[str, ...]:
    """The metrics of `wanted`, like `kiwi+xcomet`, by the names that rows mention.

    KIWI-XXL and XCOMET-XXL may have any of their usual names. The result is empty if no row has
    scores and every row has a person's preference. Raises `UserError` for a metric that no row has.
    """
    if not mentions.named and mentions.needs_no_metric:
        return ()
    return _named(wanted, list(mentions.named))


def _named(wanted: str, known: Sequence[str]) -> tuple[str, ...]:
    """The metrics of `wanted` by their names among `known`. Raises `UserError`."""
    if wanted in MEAN_SPELLINGS and wanted not in known:
        wanted = _ALMA_R
    # A metric's own name may hold a plus.
    parts = [wanted] if wanted in known else [part.strip() for part in wanted.split("+")]
    metrics = tuple(_find(part, known) for part in parts)
    names = [short_name(metric) for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--metrics {wanted} names {name} twice; name each metric once.")
    return metrics


def _find(name: str, known: Sequence[str]) -> str:
    """The metric among `known` that has this name or is another spelling of it."""
    if name in known:
        return name
    same = [metric for metric in known if short_name(metric) == short_name(name)]
    if same:
        return same[0]
    if not known:
        raise _no_scores()
    hint = did_you_mean(name, known, least_likeness=0.6)
    raise UserError(
        f"no row has a score by {name!r}{hint}; set --metrics to one of these, or several joined "
        f"by +: {', '.join(known)}."
    )


def _no_scores() -> UserError:
    return UserError("no row of --input has scores; make some with `cpo-ds prepare score`.")
