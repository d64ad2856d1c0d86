"""The section on bias: what choosing by one metric brings by another."""

from __future__ import annotations

import math

import numpy as np

from cpo_ds.prepare.analyses import charts
from cpo_ds.prepare.analyses.agreement import Gain, RowScores, deviation_within, gain
from cpo_ds.prepare.analyses.agreement_section import ONE_METRIC
from cpo_ds.prepare.analyses.page import (
    Chart,
    Section,
    Table,
    count,
    decimal,
    first_few,
    names,
    places_for,
    share,
)
from cpo_ds.prepare.analyses.view import CHART_METRICS, View
from cpo_ds.prepare.pairs.choose import rate

ANCHOR, TITLE = "bias", "Whether choosing by a metric favours that metric"


def bias(view: View) -> Section:
    """Selecting by evaluating metrics: how much better the chosen translation is."""
    metrics = [metric.name for metric in view.scored.metrics]
    if len(metrics) < 2:
        return Section(ANCHOR, TITLE, explanation=(ONE_METRIC,))
    rows = view.scored.rows
    judges = {name: [row.scores.get(name, {}) for row in rows] for name in metrics}
    selectors: dict[str, list[RowScores]] = dict(judges)
    if len(view.selecting) > 1:
        means = [rate(row.row, view.selecting).means for row in rows]
        selectors = {view.selecting_name: means} | selectors
    found = {
        label: {name: gain(selecting, judging) for name, judging in judges.items()}
        for label, selecting in selectors.items()
    }
    if not any(one.rows for gains in found.values() for one in gains.values()):
        why = "No row has two translations that score differently: there is nothing to choose."
        return Section(ANCHOR, TITLE, explanation=(why,))
    deviations = {name: deviation_within(view.tables[name]) for name in metrics}
    findings = [_finding(label, gains) for label, gains in found.items()]
    explanation = (
        "How to read it: a line chooses, a column judges. The number is the score of the chosen "
        "translation minus the mean of all translations of its source, in standard deviations of "
        "the judging metric among translations of one source, so that columns compare.",
        "A metric is always happiest with its own choice, whose errors it shares. Where the others "
        "gain nearly as much as they would by theirs, they too find the chosen translations "
        "better; where they gain little, the choice follows what the selecting metric likes. "
        "Metrics trained on the same judgements share errors, so that the best judge is one of "
        "another kind, or a person.",
    )
    parts = (_chart(found, deviations), _table(found, deviations))
    return Section(ANCHOR, TITLE, first_few(findings), explanation, parts)


def _finding(label: str, gains: dict[str, Gain]) -> str:
    said = [
        f"{other} {share(one.share)}"
        for other, one in gains.items()
        if other != label and not math.isnan(one.share)
    ]
    if not said:
        return f"Choosing by {label} cannot be judged: scores are equal."
    return f"Choosing by {label} gives {names(said)} of the gain that its own choice would."


def _in_deviations(value: float, deviation: float) -> float:
    return value / deviation if deviation > 0 else math.nan


def _chart(found: dict[str, dict[str, Gain]], deviations: dict[str, float]) -> Chart:
    evaluating = list(deviations)[:CHART_METRICS]
    selecting = list(found)[: CHART_METRICS + 1]
    gains = [
        [_in_deviations(found[label][name].over_mean, deviations[name]) for name in evaluating]
        for label in selecting
    ]
    return Chart(
        charts.gain_chart(selecting, evaluating, np.array(gains)),
        "Grid: gain of the chosen translation for each selecting metric (line) by each evaluating "
        "metric (column). The table below has the numbers.",
        "Gain of the chosen translation over the mean of its row, in standard deviations.",
    )


def _table(found: dict[str, dict[str, Gain]], deviations: dict[str, float]) -> Table:
    def line(name: str, one: Gain) -> tuple[str, ...]:
        places = places_for(deviations[name])
        return (
            name,
            decimal(_in_deviations(one.over_mean, deviations[name]), 2, sign=True),
            share(one.share),
            decimal(_in_deviations(one.over_rejected, deviations[name]), 2, sign=True),
            decimal(one.over_mean, places, sign=True),
            decimal(one.over_rejected, places, sign=True),
            count(one.rows),
        )

    return Table(
        "Chosen minus the mean of the row, and chosen minus rejected, in standard deviations and "
        "in scores. The share is of what the evaluating metric's own choice would gain.",
        ("chosen by", "evaluated by", "over mean", "share", "over rejected", "over mean, scores",
         "over rejected, scores", "rows"),
        tuple(
            (label, tuple(line(name, one) for name, one in gains.items()))
            for label, gains in found.items()
        ),
        ("evaluated by",),
    )  # fmt: skip
