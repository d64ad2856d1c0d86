"""Scores systems by metrics, tests their differences, and says what a reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cpo_ds import __version__
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.evaluate.guard import Selected, advice, headline, mark
from cpo_ds.evaluate.lexical import score_direction
from cpo_ds.evaluate.neural import Computing, SegmentScores, models_in_rows, segment_scores
from cpo_ds.evaluate.report import Report
from cpo_ds.evaluate.results import Result, means
from cpo_ds.evaluate.rows import Direction
from cpo_ds.evaluate.significance import (
    Comparison,
    Kind,
    compare_lexical,
    compare_segments,
)
from cpo_ds.scoring.corpus import tokenizer_of
from cpo_ds.scoring.metrics import Metric, model_name, parse_metrics


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and how."""

    metrics: tuple[Metric, ...]
    selected: Selected = field(default_factory=dict)
    tests: tuple[Kind, ...] = ()
    baseline: str | None = None  # the first system
    computing: Computing = field(default_factory=Computing)
    tokenizers: Mapping[str, str] = field(default_factory=dict)  # by direction, not the usual ones


def metrics_of(names: Sequence[str], directions: Sequence[Direction]) -> tuple[Metric, ...]:
    """The metrics of these names: known ones, and others that the rows have scores by.

    Raises `UserError` for any other name.
    """
    models = models_in_rows([row for direction in directions for row in direction.rows])
    metrics = []
    for name in names:
        if name in models and "=" not in name:
            metrics.append(Metric(name, models[name] or model_name(name)))
        else:
            metrics += parse_metrics([name], others=models)
    parse_metrics([f"{metric.name}=chrf" for metric in metrics])  # each name is given once
    return tuple(metrics)


def evaluate(directions: Sequence[Direction], plan: Plan) -> Report:
    """Scores every system in every direction by every metric. Raises `UserError`."""
    notes = _check(directions, plan)
    neural = [metric for metric in plan.metrics if not metric.is_lexical]
    scored = segment_scores(neural, directions, plan.computing)
    by_name = {scores.metric.name: scores for scores in scored}

    # Scores by direction, then their means.
    results: list[Result] = []
    for metric in plan.metrics:
        if metric.name in by_name:
            results += by_name[metric.name].results(directions)
            continue
        for direction in directions:
            tokenizer = _tokenizer(direction, plan)
            results += score_direction(metric.name, metric.model, direction, tokenizer)
    results = mark(results, plan.metrics, plan.selected)
    of_directions, mean_notes = means(results, [d.language_pair for d in directions])

    # Differences, and sentences on all of it.
    shown = headline(plan.metrics, plan.selected)
    comparisons = [
        # Delta accuracy holds for systems whose training no metric selected.
        comparison if comparison.metric in shown else replace(comparison, agreement=None)
        for comparison in _compare(directions, plan, by_name)
    ]
    notes += [*mean_notes, *advice(plan.metrics, plan.selected)]
    more: dict[str, Any] = {
        "version": f"cpo_ds {__version__}",
        "systems": list(dict.fromkeys(s for d in directions for s in d.systems)),
        "selected_by": {system: list(names) for system, names in plan.selected.items()},
        "baseline": _baseline(directions, plan) if plan.tests else None,
        "significance": [comparison.as_json() for comparison in comparisons],
    }
    return Report(results + of_directions, shown, list(dict.fromkeys(notes)), more)


def _tokenizer(direction: Direction, plan: Plan) -> str:
    usual = tokenizer_of(direction.target).name
    return plan.tokenizers.get(direction.language_pair, usual)


def _check(directions: Sequence[Direction], plan: Plan) -> list[str]:
    """Checks systems and references; returns notes on tokenizers. Raises `UserError`."""
    systems = list(dict.fromkeys(s for d in directions for s in d.systems))
    for system in [*plan.selected, *([plan.baseline] if plan.baseline else [])]:
        if system not in systems:
            raise UserError(
                f"there is no system {system} in the rows{did_you_mean(system, systems)}; they "
                f"have {', '.join(systems)}."
            )
    if plan.tests and len(systems) < 2:
        raise UserError(f"a paired test compares two systems, and the rows have {systems[0]} only.")
    for metric in plan.metrics:
        if metric.is_lexical:
            _check_references(metric, directions)
    if not any(metric.model == "bleu" for metric in plan.metrics) or plan.tokenizers:
        return []
    return [note for d in directions if (note := tokenizer_of(d.target).note)]


def _check_references(metric: Metric, directions: Sequence[Direction]) -> None:
    """Raises `UserError` if a metric that compares with references misses one."""
    for row in (row for direction in directions for row in direction.rows):
        if row.reference is None:
            raise UserError(
                f"--metric {metric.name} compares with references, and {row.where} has none; add "
                '"reference" to every row, or take a metric that needs none, like kiwi-22.'
            )


def _baseline(directions: Sequence[Direction], plan: Plan) -> str:
    return plan.baseline or directions[0].systems[0]


def _compare(
    directions: Sequence[Direction], plan: Plan, by_name: Mapping[str, SegmentScores]
) -> list[Comparison]:
    """The tests of each metric in each direction that the baseline translated."""
    comparisons: list[Comparison] = []
    baseline = _baseline(directions, plan)
    compared = [d for d in directions if baseline in d.systems and len(d.systems) > 1]
    for kind in plan.tests:
        for metric in plan.metrics:
            for direction in compared:
                if scores := by_name.get(metric.name):
                    comparisons += compare_segments(scores, direction, baseline, kind)
                else:
                    tokenizer = _tokenizer(direction, plan)
                    comparisons += compare_lexical(metric, direction, tokenizer, baseline, kind)
    return comparisons
