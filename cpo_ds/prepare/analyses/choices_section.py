"""The section on choices: which systems the chosen and the rejected translations come from."""

from __future__ import annotations

from collections import Counter

import numpy as np

from cpo_ds.data.candidates import REFERENCE
from cpo_ds.prepare.analyses import charts
from cpo_ds.prepare.analyses.systems import Provenance, provenance
from cpo_ds.prepare.analyses.view import OTHERS, View
from cpo_ds.report.page import Chart, Section, Table, count, join_names, share


def choices_section(view: View) -> Section:
    """The section on the systems that are chosen and rejected."""
    # Choose in every row of every group.
    anchor, title = "choices", "Where chosen and rejected translations come from"
    counted = {group: provenance(view.choices, rows) for group, rows in view.groups.items()}
    overall = next(iter(counted.values()))

    # Notes on rows that the scores do not decide.
    notes = [
        f"Rows without a choice, {reason}: {count(number)}."
        for reason, number in sorted(overall.no_choice.items())
    ]
    if overall.human:
        notes.append(f"Rows in which a person's preference decides: {count(overall.human)}.")
    notes += _about_mean(view)
    if not overall.pairs:
        why = "No row has two translations that score differently: there is nothing to choose."
        return Section(anchor, title, explanation=(why,), notes=tuple(notes))

    # The sentences.
    by = view.selecting_name
    findings = [
        f"{label} by {by}: "
        + ", ".join(f"{system} {share(number, overall.pairs)}" for system, number in ordered)
        + f" of {count(overall.pairs, 'pair')}."
        for label, ordered in (
            ("Chosen", _ordered(view, overall.chosen)),
            ("Rejected", _ordered(view, overall.rejected)),
        )
    ]
    explanation = (
        "In every row the translation with the highest mean of "
        f"{join_names(list(view.selecting))} is chosen and the one with the lowest is rejected, as "
        "for ALMA-R. Of equal scores the first counts: the reference, then the order of the row. "
        "Rows whose scores are all equal give no pair.",
    )
    parts = (_choice_chart(view, counted), _choice_table(view, counted))
    return Section(anchor, title, tuple(findings), explanation, parts, tuple(notes))


def _ordered(view: View, counter: Counter[str]) -> list[tuple[str, int]]:
    """Counts of the systems to choose from, in their order."""
    return [(system, counter[system]) for system in _candidates(view)]


def _candidates(view: View) -> list[str]:
    """The systems to choose from: without the reference if a metric compares with it."""
    can_judge = set(view.selecting) <= set(view.scored.estimates)
    return [system for system in view.systems if system != REFERENCE or can_judge]


def _about_mean(view: View) -> list[str]:
    """Notes on the mean that chooses."""
    compare = [name for name in view.selecting if name not in view.scored.estimates]
    notes = []
    if compare:
        notes.append(
            f"The choice uses {join_names(compare)}, which cannot judge the reference. So the "
            "reference is never chosen or rejected here, and translations like it are preferred."
        )
    # In a plain mean, the metric with the widest spread of scores decides most.
    spread = {name: float(np.nanstd(view.scored.table(name))) for name in view.selecting}
    widest, narrowest = max(spread, key=spread.__getitem__), min(spread, key=spread.__getitem__)
    if spread[widest] > 4 * spread[narrowest]:
        notes.append(
            f"The mean follows {widest} most, whose scores spread far wider than {narrowest}'s."
        )
    return notes


def _choice_chart(view: View, counted: dict[str, Provenance]) -> Chart:
    """The chart of the systems' shares."""
    shown = [system for system in view.colours if system != OTHERS]
    panels: dict[str, np.ndarray] = {}
    for title in ("chosen", "rejected"):
        counters = [getattr(counted[group], title) for group in view.chart_groups]
        table = [[*(counter[system] for system in shown), counter.total()] for counter in counters]
        counts = np.array(table, float)
        counts[:, -1] -= counts[:, :-1].sum(axis=1)  # the other systems' share
        panels[title] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with_others = any(panel[:, -1].any() for panel in panels.values())
    return Chart(
        charts.shares_chart(view.chart_groups, panels, list(view.colours.values())),
        "Bars: shares of the systems among chosen and among rejected translations, for each "
        "direction. The table below has the numbers.",
        f"Shares of the systems among chosen and rejected translations, by {view.selecting_name}.",
        tuple(
            (colour, system)
            for system, colour in view.colours.items()
            if system in _candidates(view) or (system == OTHERS and with_others)
        ),
    )


def _choice_table(view: View, counted: dict[str, Provenance]) -> Table:
    """The table of the systems' counts and shares."""

    def line(system: str, one: Provenance) -> tuple[str, ...]:
        chosen, rejected = one.chosen[system], one.rejected[system]
        shares = share(chosen, one.pairs), share(rejected, one.pairs)
        return (system, count(chosen), shares[0], count(rejected), shares[1])

    def label(group: str, one: Provenance) -> str:
        without = one.no_choice.total()
        end = f"\n{count(without)} without" if without else ""
        return f"{group}\n{count(one.pairs, 'pair')}{end}"

    return Table(
        f"Chosen and rejected by {view.selecting_name}; shares of the direction's pairs.",
        ("direction", "system", "chosen", "share of chosen", "rejected", "share of rejected"),
        tuple(
            (label(group, one), tuple(line(system, one) for system in _candidates(view)))
            for group, one in counted.items()
        ),
        ("system",),
    )
