"""Rows with scores -> the pairs that are kept, and counts of all the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs import filters
from cpo_ds.prepare.pairs.choose import (
    Pair,
    Rated,
    choose,
    human_preference,
    rate,
    scorer_name,
)
from cpo_ds.prepare.pairs.metric_choice import Taken, take_metrics


@dataclass(frozen=True)
class Options:
    """What is selected and how; None where a filter is off."""

    pairs: str
    metrics: str | None  # None: those that the rows suggest
    min_margin: float
    directions: tuple[str, ...] | None
    check_language: float | None
    max_length_ratio: float | None
    prompt_style: str


@dataclass(frozen=True)
class Selection:
    """The rows of the directions selected, the pairs kept of them, and what was dropped.

    All in the order of the input; `dropped` counts rows and pairs by reason.
    """

    rated: list[Rated]
    taken: Taken  # the metrics that choose
    pairs: list[Pair]
    dropped: Counter[str]


def select(rows: Sequence[CandidateRow], options: Options) -> Selection:
    """Picks pairs and filters them. Raises `UserError` for rows that are not as they should be."""
    there = sorted({row.language_pair for row in rows})
    for direction in options.directions or ():
        if direction not in there:
            raise UserError(
                f"--directions: {direction} is not in the rows; choose among those that are: "
                f"{', '.join(there)}."
            )
    wanted = [row for row in rows if row.language_pair in (options.directions or there)]
    dropped = Counter({"direction not selected": len(rows) - len(wanted)})
    taken = take_metrics(options.metrics, wanted)
    rated = [rate(row, taken.metrics) for row in wanted]
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
    return Selection(rated, taken, pairs, +dropped)  # + leaves zeros out


def _filters(options: Options, rows: Sequence[CandidateRow]) -> list[filters.Filter]:
    found: list[filters.Filter] = [filters.not_equal]
    if options.min_margin:
        found.append(filters.margin_filter(options.min_margin))
    if options.check_language is not None:
        found.append(filters.language_filter(options.check_language))
    if options.max_length_ratio is not None:
        medians = filters.median_ratios(rows)
        found.append(filters.length_filter(options.max_length_ratio, medians))
    return [*found, filters.duplicate_filter()]


def summarize(selection: Selection) -> dict[str, Any]:
    """Counts of a selection, and whose translations were chosen and rejected how often."""
    sides: dict[str, dict[str, Counter[str]]] = {"chosen": {}, "rejected": {}}
    for pair in selection.pairs:
        for side, name in (("chosen", pair.chosen_system), ("rejected", pair.rejected_system)):
            sides[side].setdefault(pair.direction, Counter())[name] += 1
    metrics = selection.taken.metrics
    by_scores = [rated for rated in selection.rated if not human_preference(rated.row)]
    return {
        "metrics": list(metrics),
        "metrics_because": selection.taken.because,
        "metrics_left_out": dict(selection.taken.left_out),
        "scorer": scorer_name(metrics),
        "scorers": {metric: _scorers(metric, selection.rated) for metric in metrics},
        "pairs": dict(sorted(Counter(pair.direction for pair in selection.pairs).items())),
        "human_preferences": sum(pair.is_human for pair in selection.pairs),
        "dropped": dict(selection.dropped.most_common()),
        "unscored_translations": sum(rated.unscored for rated in by_scores),
        "references_left_out": sum(rated.leaves_reference_out for rated in by_scores),
        **{
            side: {direction: dict(names.most_common()) for direction, names in sorted(by.items())}
            for side, by in sides.items()
        },
    }


def _scorers(metric: str, rated: Sequence[Rated]) -> list[Any]:
    """What is recorded of how a metric's scores were made, each record once."""
    rows = [row.row.values.get("scorers") for row in rated]
    records = [row.get(metric) for row in rows if isinstance(row, dict)]
    return list(
        {json.dumps(record, sort_keys=True): record for record in records if record}.values()
    )
