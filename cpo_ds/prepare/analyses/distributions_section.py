"""The section on distributions: how the scores of each system spread."""

from __future__ import annotations

import math

import numpy as np

from cpo_ds.prepare.analyses import charts
from cpo_ds.prepare.analyses.systems import Distribution, distribution
from cpo_ds.prepare.analyses.view import ALL, View
from cpo_ds.report.page import (
    Chart,
    Section,
    Table,
    count,
    decimal,
    decimals_for,
    first_findings,
)


def distributions_section(view: View) -> Section:
    """The section on each system's scores, metric by metric."""
    parts: list[Table | Chart] = []
    findings = []
    for metric in (metric.name for metric in view.scored.metrics):
        columns = view.columns(metric, view.systems)
        means = {system: distribution(column).mean for system, column in columns.items()}
        scored = [system for system, mean in means.items() if not math.isnan(mean)]
        decimals = decimals_for(float(np.nanstd(view.scored.table(metric))))
        listed = [f"{system} {decimal(means[system], decimals)}" for system in scored]
        findings.append(f"Mean {metric}: {', '.join(listed) or 'only of systems not shown'}.")
        if any(system in view.colours for system in scored):
            parts.append(_distribution_chart(view, metric, scored, columns))
        parts.append(_distribution_table(view, metric, scored, columns, decimals))
    explanation = (
        "A violin is a histogram of one system's scores, mirrored; its thick line spans the middle "
        "half and the dot on it is the median.",
        "Compare systems within a direction only: levels differ between directions for reasons "
        "that have nothing to do with the systems.",
    )
    title = "How scores are distributed"
    return Section("distributions", title, first_findings(findings), explanation, tuple(parts))


def _distribution_chart(
    view: View, metric: str, scored: list[str], all_columns: dict[str, np.ndarray]
) -> Chart:
    """Violins and means of the systems that have a colour; `scored` are those with scores."""
    systems = [system for system in view.colours if system in scored]
    directions = [group for group in view.chart_groups if group != ALL]
    columns = {system: all_columns[system] for system in systems}
    means = np.array(
        [
            [distribution(column[view.groups[group]]).mean for column in columns.values()]
            for group in directions
        ]
    )
    return Chart(
        charts.distribution_chart(
            {system: column[~np.isnan(column)] for system, column in columns.items()},
            directions,
            means,
            [view.colours[system] for system in systems],
            metric,
        ),
        f"Violins of the scores of each system by {metric}, and dots for their means in each "
        "direction. The table below has the numbers.",
        f"Scores by {metric}: first all of them, then the mean of each direction.",
        tuple((view.colours[system], system) for system in systems),
    )


def _distribution_table(
    view: View, metric: str, scored: list[str], columns: dict[str, np.ndarray], decimals: int
) -> Table:
    """Number, mean, deviation and quantiles of each system with scores."""

    def line(system: str, rows: np.ndarray) -> tuple[str, ...]:
        one: Distribution = distribution(columns[system][rows])
        values = (one.mean, one.deviation, *one.quantiles)
        return (system, count(one.count), *(decimal(value, decimals) for value in values))

    return Table(
        f"Scores by {metric}: number, mean, standard deviation and quantiles.",
        ("direction", "system", "scores", "mean", "deviation", "5%", "25%", "median", "75%", "95%"),
        tuple(
            (group, tuple(line(system, rows) for system in scored))
            for group, rows in view.groups.items()
        ),
        ("system",),
    )
