"""Tables of the differences between systems, with the outcomes of paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpo_ds.evaluate.delta_accuracy import source
from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.evaluate.significance import LEVEL, NAMES
from cpo_ds.evaluate.tables import NO_SCORE, Cell, Table

_HEADER = ("", "system", "difference", "p", "verdict", "people agree")


def difference_tables(
    comparisons: Sequence[Mapping[str, Any]], headline: Sequence[str]
) -> list[Table]:
    """A table for each metric and test, with a line for each direction and system.

    Metrics that are not in the headline are marked.
    """
    keys = dict.fromkeys((c["metric"], c["test"], c["samples"]) for c in comparisons)
    return [
        _table(
            [c for c in comparisons if (c["metric"], c["test"], c["samples"]) == key],
            "" if key[0] in headline else " (!)",
        )
        for key in keys
    ]


def _table(comparisons: Sequence[Mapping[str, Any]], mark: str) -> Table:
    first = comparisons[0]
    scale = facts_of(first["metric"]).scale
    rows = [
        tuple(
            map(
                Cell,
                (
                    c["language_pair"],
                    c["system"],
                    f"{c['difference'] * scale:+.2f}",
                    f"{c['p_value']:.4f}",
                    c["verdict"],
                    c["agreement"] or NO_SCORE,
                ),
            )
        )
        for c in comparisons
    ]
    title = f"{first['metric']}{mark}: differences from {first['baseline']}"
    notes = [
        f"{NAMES[first['test']]}, {first['samples']} draws, seed {first['seed']}; a tie if p is "
        f"{LEVEL} or more"
    ]
    if any(c["agreement"] for c in comparisons):
        notes.append(f"people agree: share of decisions for a difference of this size ({source()})")
    return Table(title, _HEADER, rows, tuple(notes))
