"""The section on the human reference: how often each system scores above it."""

from __future__ import annotations

import math

import numpy as np

from cpo_ds.data.candidates import REFERENCE
from cpo_ds.prepare.analyses import charts
from cpo_ds.prepare.analyses.systems import ReferenceComparison, versus_reference
from cpo_ds.prepare.analyses.view import View
from cpo_ds.report.page import (
    Chart,
    Section,
    Table,
    count,
    decimal,
    decimals_for,
    first_findings,
    share,
)


def reference_section(view: View) -> Section:
    """The section that compares each system with the human reference."""
    # Say why if there is nothing to compare.
    anchor, title = "reference", "Gold or gilded: how often systems score above the reference"
    systems = [system for system in view.systems if system != REFERENCE]
    estimates = view.scored.estimates
    if not view.scored.has_reference or not systems or not estimates:
        why = (
            "No row has a reference"
            if not view.scored.has_reference
            else "No row has a translation besides the reference"
            if not systems
            else "Every metric compares with the reference and so cannot judge it"
        )
        return Section(anchor, title, explanation=(f"{why}: there is nothing to show here.",))

    # Compare by each metric that does not look at the reference.
    findings: list[str] = []
    parts: list[Chart | Table] = []
    for metric in estimates:
        outcomes = _outcomes(view, metric, systems)
        overall = next(iter(outcomes.values()))
        listed = [f"{system} {share(one.better, one.rows)}" for system, one in overall.items()]
        findings.append(f"By {metric}, above the reference: {', '.join(listed)}.")
        parts += [_versus_chart(view, metric, outcomes), _versus_table(view, metric, outcomes)]
    explanation = (
        "Each system's translation is compared with the human reference of the same source. Equal "
        "scores, as of equal texts, are counted apart and not as half a win.",
        "A metric is not a person: if it likes a system's style, that system beats the reference "
        "more often than it should.",
        "Intervals cover 95% (Wilson's for shares, 1.96 standard errors for means). They treat "
        "rows as independent, which sentences of one document are not quite.",
    )
    return Section(anchor, title, first_findings(findings), explanation, tuple(parts))


def _outcomes(
    view: View, metric: str, systems: list[str]
) -> dict[str, dict[str, ReferenceComparison]]:
    """Each system's comparison with the reference, by group of rows and by system."""
    columns = view.columns(metric, (REFERENCE, *systems))
    reference = columns[REFERENCE]
    return {
        group: {
            system: versus_reference(columns[system][rows], reference[rows]) for system in systems
        }
        for group, rows in view.groups.items()
    }


def _versus_chart(
    view: View, metric: str, outcomes: dict[str, dict[str, ReferenceComparison]]
) -> Chart:
    """The chart of the shares of rows."""
    systems = [system for system in view.colours if system in next(iter(outcomes.values()))]
    bars = {system: [outcomes[group][system] for group in view.chart_groups] for system in systems}
    return Chart(
        charts.versus_chart(view.chart_groups, bars, metric),
        f"Bars: share of rows in which each system scores above the reference by {metric}, for "
        "each direction. The table below has the numbers.",
        f"By {metric}: rows in which a system scores above, equal to and below the reference. "
        "The thin line is the 95% interval of the first share.",
        ((charts.BETTER, "above the reference"), (charts.EQUAL, "equal"), (charts.WORSE, "below")),
    )


def _versus_table(
    view: View, metric: str, outcomes: dict[str, dict[str, ReferenceComparison]]
) -> Table:
    """The table of shares, intervals and differences."""
    decimals = decimals_for(float(np.nanstd(view.scored.table(metric))))
    return Table(
        f"By {metric}, against the reference. The difference is the system's score minus the "
        "reference's.",
        ("direction", "system", "rows", "above", "95% interval", "equal", "below",
         "mean difference"),
        tuple(
            (group, tuple(_versus_line(system, one, decimals) for system, one in systems.items()))
            for group, systems in outcomes.items()
        ),
        ("system",),
    )  # fmt: skip


def _versus_line(system: str, one: ReferenceComparison, decimals: int) -> tuple[str, ...]:
    """One system's line of the table."""
    low, high = one.interval
    margin = "" if math.isnan(one.margin) else f" ± {decimal(one.margin, decimals)}"
    return (
        system,
        count(one.rows),
        share(one.better, one.rows),
        "–" if math.isnan(low) else f"{100 * low:.1f} to {share(high)}",
        share(one.equal, one.rows),
        share(one.worse, one.rows),
        decimal(one.difference, decimals, sign=True) + margin,
    )
