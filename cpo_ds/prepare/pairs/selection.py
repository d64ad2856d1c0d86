"""Selects pairs from rows with scores, and counts the rows and pairs that are dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import Languages
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs import filters
from cpo_ds.prepare.pairs.choose import (
    Pair,
    RatedRow,
    choose,
    human_preference,
    rate,
    scorer_name,
)
from cpo_ds.prepare.pairs.metric_choice import MetricChoice, choose_metrics


@dataclass(frozen=True)
class Options:
    """Options of `cpo-ds prepare select`; None switches a filter off."""

    pairs: str  # best-worst or best-each
    metrics: str | None  # like kiwi+xcomet; None: those that the rows suggest
    min_margin: float
    directions: tuple[str, ...] | None
    check_language: float | None
    max_length_ratio: float | None
    prompt_style: str
    languages: Languages = field(default_factory=dict)  # names besides the known ones, by code


@dataclass(frozen=True)
class Selection:
    """The rows of the selected directions, and the pairs kept of them, in the input's order.

    `dropped` counts rows and pairs by reason.
    """

    rated: list[RatedRow]
    choice: MetricChoice
    pairs: list[Pair]
    dropped: Counter[str]


def select(rows: Sequence[CandidateRow], options: Options) -> Selection:
    """Picks pairs and filters them. Raises `UserError` for malformed rows or unknown directions."""
    # Keep the rows of the selected directions.
    known = sorted({row.language_pair for row in rows})
    for direction in options.directions or ():
        if direction not in known:
            raise UserError(
                f"--directions: {direction} is not in the rows; choose among those that are: "
                f"{', '.join(known)}."
            )
    wanted = [row for row in rows if row.language_pair in (options.directions or known)]
    dropped = Counter({"direction not selected": len(rows) - len(wanted)})

    # Rate them by the metrics, then choose and filter pair by pair.
    choice = choose_metrics(options.metrics, wanted)
    rated = [rate(row, choice.metrics) for row in wanted]
    keep = _filters(options, wanted)
    pairs = []
    for row in rated:
        chosen = choose(row, options.pairs)
        if isinstance(chosen, str):
            dropped[chosen] += 1
            continue
        for pair in chosen:
            reason = filters.first_reason(pair, keep)
            if reason:
                dropped[reason] += 1
            else:
                pairs.append(pair)
    return Selection(rated, choice, pairs, +dropped)  # + leaves zeros out


def _filters(options: Options, rows: Sequence[CandidateRow]) -> list[filters.Filter]:
    """The filters that the options switch on, in the order in which they are asked."""
    chosen: list[filters.Filter] = [filters.not_equal]
    if options.min_margin:
        chosen.append(filters.margin_filter(options.min_margin))
    if options.check_language is not None:
        directions = sorted({row.language_pair for row in rows})
        chosen.append(filters.language_filter(options.check_language, directions))
    if options.max_length_ratio is not None:
        medians = filters.median_ratios(rows)
        chosen.append(filters.length_filter(options.max_length_ratio, medians))
    return [*chosen, filters.duplicate_filter()]


class Summary(TypedDict):
    """The counts of a selection, as `summary.json` has them."""

    metrics: list[str]
    metrics_because: str | None
    metrics_left_out: dict[str, str]
    scorer: str
    scorers: dict[str, list[Any]]  # by metric: the different records in the rows
    pairs: dict[str, int]  # by direction
    human_preferences: int
    dropped: dict[str, int]  # by reason
    unscored_translations: int
    references_left_out: int
    chosen: dict[str, dict[str, int]]  # by direction and system
    rejected: dict[str, dict[str, int]]


def summarize(selection: Selection) -> Summary:
    """Counts a selection."""
    # How often each system's translations were chosen and rejected, by direction.
    chosen: dict[str, Counter[str]] = {}
    rejected: dict[str, Counter[str]] = {}
    for pair in selection.pairs:
        chosen.setdefault(pair.direction, Counter())[pair.chosen_system] += 1
        rejected.setdefault(pair.direction, Counter())[pair.rejected_system] += 1

    metrics = selection.choice.metrics
    by_scores = [rated for rated in selection.rated if not human_preference(rated.row)]
    return {
        "metrics": list(metrics),
        "metrics_because": selection.choice.because,
        "metrics_left_out": dict(selection.choice.left_out),
        "scorer": scorer_name(metrics),
        "scorers": {metric: _scorers(metric, selection.rated) for metric in metrics},
        "pairs": dict(sorted(Counter(pair.direction for pair in selection.pairs).items())),
        "human_preferences": sum(pair.is_human for pair in selection.pairs),
        "dropped": dict(selection.dropped.most_common()),
        "unscored_translations": sum(rated.unscored for rated in by_scores),
        "references_left_out": sum(rated.leaves_reference_out for rated in by_scores),
        "chosen": _most_common(chosen),
        "rejected": _most_common(rejected),
    }


def _most_common(by_direction: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """The counts with directions in order of name and the largest counts first."""
    return {name: dict(counts.most_common()) for name, counts in sorted(by_direction.items())}


def _scorers(metric: str, rated: Sequence[RatedRow]) -> list[Any]:
    """The different records of how a metric's scores were made."""
    rows = [row.row.values.get("scorers") for row in rated]
    records = [row.get(metric) for row in rows if isinstance(row, dict)]
    return list(
        {json.dumps(record, sort_keys=True): record for record in records if record}.values()
    )
