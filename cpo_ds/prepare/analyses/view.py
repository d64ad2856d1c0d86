"""The data of all sections of the report: scores, groups of rows, systems and their colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cpo_ds.data.candidates import REFERENCE
from cpo_ds.errors import UserError
from cpo_ds.prepare.analyses.scored import ScoredRows
from cpo_ds.prepare.analyses.systems import Choices, make_choices
from cpo_ds.prepare.pairs.metric_choice import find_metrics

ALL = "all directions"
OTHERS = "other systems"
# Limits keep tables and charts readable and the page small. Directions and systems with the fewest
# rows are not shown singly. X-ALMA has 98 directions.
TABLE_DIRECTIONS, TABLE_SYSTEMS = 100, 20
CHART_DIRECTIONS, CHART_SYSTEMS, CHART_METRICS = 16, 8, 8
_GREY, _OTHERS_GREY = "#5A626B", "#D5D8DC"
# Okabe and Ito's colours: people with colour blindness can tell them apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F4F9B")


@dataclass(frozen=True)
class View:
    """The data of all sections. `selecting` are the metrics whose mean chooses."""

    scored: ScoredRows
    selecting: tuple[str, ...]
    choices: Choices
    groups: dict[str, np.ndarray]  # by direction, or `ALL`: indices of rows
    chart_groups: tuple[str, ...]
    systems: tuple[str, ...]  # in tables, the reference included
    colours: dict[str, str]  # of the systems in charts, the reference included
    unshown: tuple[str, ...]  # sentences on what tables do not show

    def columns(self, metric: str, systems: Iterable[str]) -> dict[str, np.ndarray]:
        """Scores of some systems by a metric, [rows] each."""
        table = self.scored.table(metric)
        return {name: table[:, self.scored.systems.index(name)] for name in systems}

    @property
    def selecting_name(self) -> str:
        """The selecting metrics as one name, like "kiwi+xcomet"."""
        return "+".join(self.selecting)


def make_view(scored: ScoredRows, selecting: tuple[str, ...]) -> View:
    """Limits directions and systems to those with the most rows, and colours the systems.

    It reads the rows again, to choose in each of them.
    """
    # Directions and systems of tables and charts.
    sizes = _counts(scored.direction_of, scored.directions)
    is_scored = ~np.logical_and.reduce([np.isnan(scores) for scores in scored.scores.values()])
    translations = _counts(scored.system_of[is_scored], scored.systems)
    directions = _largest(scored.directions, sizes, TABLE_DIRECTIONS)
    systems = _largest(scored.systems, translations, TABLE_SYSTEMS)
    in_charts = _largest(scored.systems, translations, CHART_SYSTEMS)
    palette = dict(zip([name for name in in_charts if name != REFERENCE], _COLOURS, strict=False))

    # Groups of rows: each direction, and all together if there are several.
    everything = {ALL: np.arange(scored.num_rows)} if len(scored.directions) > 1 else {}
    groups = {
        direction: np.flatnonzero(scored.direction_of == scored.directions.index(direction))
        for direction in directions
    }

    # Sentences on what is left out.
    unshown = []
    for noun, shown, known in (
        ("directions", directions, scored.directions),
        ("systems (with the reference)", systems, scored.systems),
    ):
        if len(shown) < len(known):
            unshown.append(
                f"Tables show {len(shown)} of {len(known)} {noun}, those with the most rows. All "
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
        choices=make_choices(scored.rows, selecting),
        groups=everything | groups,
        chart_groups=(*everything, *_largest(directions, sizes, CHART_DIRECTIONS)),
        systems=systems,
        colours={name: palette.get(name, _GREY) for name in in_charts} | {OTHERS: _OTHERS_GREY},
        unshown=tuple(unshown),
    )


def _counts(numbers: np.ndarray, names: Sequence[str]) -> Counter[str]:
    """How often each name's number comes up."""
    counts = np.bincount(numbers, minlength=len(names)).tolist()
    return Counter(dict(zip(names, counts, strict=True)))


def _largest(names: Iterable[str], sizes: Counter[str], limit: int) -> tuple[str, ...]:
    """The names with the largest sizes, in their given order; the reference always stays."""
    names = list(names)
    kept = set(sorted(names, key=lambda name: (name != REFERENCE, -sizes[name], name))[:limit])
    return tuple(name for name in names if name in kept)


def selecting_metrics(scored: ScoredRows, given: str | None) -> tuple[str, ...]:
    """The metrics to choose by: those of `given`, like `kiwi+xcomet`, or all quality estimates.

    Estimates that count errors have another scale, so they choose only if there are no others.
    Without estimates, all metrics choose. Raises `UserError` for a metric that scores no row.
    """
    known = tuple(metric.name for metric in scored.metrics)
    if given is None:
        negated = {metric.name for metric in scored.metrics if metric.is_negated}
        alike = tuple(name for name in scored.estimates if name not in negated)
        return alike or scored.estimates or known
    selecting = find_metrics(given, scored.mentions)
    for name in selecting:
        if name not in known:
            raise UserError(f"--metrics {given}: {name} scores nothing but references.")
    return selecting
