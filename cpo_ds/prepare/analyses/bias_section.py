"""The section on bias: the gain from choosing by one metric, judged by another."""

from __future__ import annotations

import math

import numpy as np

from cpo_ds.prepare.analyses import charts
from cpo_ds.prepare.analyses.agreement import Gain, deviation_within, gain
from cpo_ds.prepare.analyses.agreement_section import ONE_METRIC
from cpo_ds.prepare.analyses.view import CHART_METRICS, View
from cpo_ds.report.page import (
    Chart,
    Section,
    Table,
    count,
    decimal,
    decimals_for,
    first_findings,
    join_names,
    share,
)

ANCHOR, TITLE = "bias", "Whether choosing by a metric favours that metric"


def bias_section(view: View) -> Section:
    """The section in which each metric judges the choices of each other one."""
    metrics = [metric.name for metric in view.scored.metrics]
    if len(metrics) < 2:
        return Section(ANCHOR, TITLE, explanation=(ONE_METRIC,))

    # Every metric chooses, and so does the mean that `select` would use.
    scored = view.scored
    selectors = {name: scored.scores[name] for name in metrics}
    if len(view.selecting) > 1:
        selectors = {view.selecting_name: view.choices.means} | selectors
    gains_by = {
        label: {
            name: gain(scored.row_scores(selecting), scored.row_scores(scored.scores[name]))
            for name in metrics
        }
        for label, selecting in selectors.items()
    }
    if not any(one.rows for gains in gains_by.values() for one in gains.values()):
        why = "No row has two translations that score differently: there is nothing to choose."
        return Section(ANCHOR, TITLE, explanation=(why,))

    # The sentences, the chart and the table. In the latter two, gains are in standard deviations.
    deviations = {name: deviation_within(scored.table(name)) for name in metrics}
    findings = [_finding(label, gains) for label, gains in gains_by.items()]
    explanation = (
        "How to read it: a line chooses, a column judges. The number is the score of the chosen "
        "translation minus the mean of all translations of its source, in standard deviations of "
        "the judging metric among translations of one source, so that columns compare.",
        "A metric always gains most from its own choice, since it shares that choice's errors. If "
        "the other metrics gain nearly as much as by their own choices, they too find the chosen "
        "translations better. If they gain little, the choice follows a taste of the selecting "
        "metric. Metrics trained on the same judgements share errors. The best judge is therefore "
        "a metric of another kind, or a person.",
    )
    parts = (_chart(gains_by, deviations), _table(gains_by, deviations))
    return Section(ANCHOR, TITLE, first_findings(findings), explanation, parts)


def _finding(label: str, gains: dict[str, Gain]) -> str:
    """A sentence on the choices of one selecting metric."""
    judgements = [
        f"{other} {share(one.share)}"
        for other, one in gains.items()
        if other != label and not math.isnan(one.share)
    ]
    if not judgements:
        return f"Choosing by {label} cannot be judged: scores are equal."
    return (
        f"Choosing by {label} gives {join_names(judgements)} of the gain that its own choice would."
    )


def _in_deviations(value: float, deviation: float) -> float:
    """A difference of scores in standard deviations; NaN if the deviation is 0 or NaN."""
    return value / deviation if deviation > 0 else math.nan


def _chart(gains_by: dict[str, dict[str, Gain]], deviations: dict[str, float]) -> Chart:
    """The grid of gains; `gains_by` holds them by selecting and by judging metric."""
    evaluating = list(deviations)[:CHART_METRICS]
    selecting = list(gains_by)[: CHART_METRICS + 1]
    gains = [
        [_in_deviations(gains_by[label][name].over_mean, deviations[name]) for name in evaluating]
        for label in selecting
    ]
    return Chart(
        charts.gain_chart(selecting, evaluating, np.array(gains)),
        "Grid: gain of the chosen translation for each selecting metric (line) by each evaluating "
        "metric (column). The table below has the numbers.",
        "Gain of the chosen translation over the mean of its row, in standard deviations.",
    )


def _table(gains_by: dict[str, dict[str, Gain]], deviations: dict[str, float]) -> Table:
    """The table of gains, in standard deviations and in scores."""

    def line(name: str, one: Gain) -> tuple[str, ...]:
        decimals = decimals_for(deviations[name])
        return (
            name,
            decimal(_in_deviations(one.over_mean, deviations[name]), 2, sign=True),
            share(one.share),
            decimal(_in_deviations(one.over_rejected, deviations[name]), 2, sign=True),
            decimal(one.over_mean, decimals, sign=True),
            decimal(one.over_rejected, decimals, sign=True),
            count(one.rows),
        )

    return Table(
        "Chosen minus the mean of the row, and chosen minus rejected, in standard deviations and "
        "in scores. The share is of what the evaluating metric's own choice would gain.",
        ("chosen by", "evaluated by", "over mean", "share", "over rejected", "over mean, scores",
         "over rejected, scores", "rows"),
        tuple(
            (label, tuple(line(name, one) for name, one in gains.items()))
            for label, gains in gains_by.items()
        ),
        ("evaluated by",),
    )  # fmt: skip
