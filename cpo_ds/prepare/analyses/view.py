"""Scored rows with what all sections of the report share: tables of scores, groups, colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cpo_ds.data.candidates import REFERENCE
from cpo_ds.errors import UserError
from cpo_ds.prepare.analyses.scored import Scored, ScoredRow
from cpo_ds.prepare.pairs.metric_choice import find_metrics

ALL = "all directions"
OTHERS = "other systems"
# Tables and charts stay readable, and the page small, whatever comes: what has the fewest rows is
# not shown by itself. X-ALMA has 98 directions.
TABLE_DIRECTIONS, TABLE_SYSTEMS = 100, 20
CHART_DIRECTIONS, CHART_SYSTEMS, CHART_METRICS = 16, 8, 8
_GREY, _OTHERS_GREY = "#5A626B", "#D5D8DC"
# Okabe and Ito's colours, which people tell apart who do not see all colours.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F4F9B")


@dataclass(frozen=True)
class View:
    """What the sections are made from; `selecting` are the metrics whose mean chooses."""

    scored: Scored
    selecting: tuple[str, ...]
    tables: dict[str, np.ndarray]  # by metric: scores, [rows, systems]
    groups: dict[str, np.ndarray]  # `ALL`, where there are several, and directions: masks, [rows]
    chart_groups: tuple[str, ...]
    systems: tuple[str, ...]  # in tables, the reference included
    colours: dict[str, str]  # of the systems in charts, the reference included
    unshown: tuple[str, ...]  # sentences on what tables do not show

    def rows(self, group: str) -> list[ScoredRow]:
        """The rows of a group."""
        return [self.scored.rows[index] for index in np.flatnonzero(self.groups[group])]

    def column(self, metric: str, system: str) -> np.ndarray:
        """Scores of a system by a metric, [rows]."""
        return self.tables[metric][:, self.scored.systems.index(system)]

    @property
    def selecting_name(self) -> str:
        """Like "kiwi+xcomet"."""
        return "+".join(self.selecting)


def make_view(scored: Scored, selecting: tuple[str, ...]) -> View:
    """Decides what is shown: of too many directions and systems those with the most rows."""
    sizes = Counter(row.row.language_pair for row in scored.rows)
    translations = Counter(
        system for row in scored.rows for system in set().union(*row.scores.values())
    )
    directions = _largest(scored.directions, sizes, TABLE_DIRECTIONS)
    systems = _largest(scored.systems, translations, TABLE_SYSTEMS)
    in_charts = _largest(scored.systems, translations, CHART_SYSTEMS)
    palette = dict(zip([name for name in in_charts if name != REFERENCE], _COLOURS, strict=False))
    masks = scored.masks()
    everything = {ALL: np.ones(len(scored.rows), bool)} if len(masks) > 1 else {}
    unshown = []
    for what, shown, there in (
        ("directions,", directions, scored.directions),
        ("systems (with the reference),", systems, scored.systems),
    ):
        if len(shown) < len(there):
            unshown.append(
                f"Tables show {len(shown)} of {len(there)} {what} those with the most rows; all "
                "count in the totals."
            )
    if len(directions) > CHART_DIRECTIONS or len(systems) > CHART_SYSTEMS:
        unshown.append(
            f"Charts show no more than {CHART_DIRECTIONS} directions and {CHART_SYSTEMS} systems, "
            "those with the most rows."
        )
    if len(scored.metrics) > CHART_METRICS:
        unshown.append(f"Charts that compare metrics show the first {CHART_METRICS}.")
    return View(
        scored=scored,
        selecting=selecting,
        tables={metric.name: scored.table(metric.name) for metric in scored.metrics},
        groups=everything | {direction: masks[direction] for direction in directions},
        chart_groups=(*everything, *_largest(directions, sizes, CHART_DIRECTIONS)),
        systems=systems,
        colours={name: palette.get(name, _GREY) for name in in_charts} | {OTHERS: _OTHERS_GREY},
        unshown=tuple(unshown),
    )


def _largest(names: Iterable[str], sizes: Counter[str], limit: int) -> tuple[str, ...]:
    """The names with the largest sizes, in the order that they come in."""
    names = list(names)
    kept = set(sorted(names, key=lambda name: (name != REFERENCE, -sizes[name], name))[:limit])
    return tuple(name for name in names if name in kept)


def selecting_metrics(scored: Scored, given: str | None) -> tuple[str, ...]:
    """The metrics to choose by: those of `kiwi+xcomet`, or all estimates, or, without any, all.

    Raises `UserError` for a name that no row has scores by.
    """
    there = tuple(metric.name for metric in scored.metrics)
    if given is None:
        return scored.estimates or there
    found = find_metrics(given, [row.row for row in scored.rows])
    for name in found:
        if name not in there:
            raise UserError(f"--metrics {given}: {name} scores nothing but references.")
    return found
