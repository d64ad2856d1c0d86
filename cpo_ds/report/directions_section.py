"""The section on translation directions: held-out accuracy and margin of each, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cpo_ds.data.json_text import finite
from cpo_ds.report.curves_section import colour_of
from cpo_ds.report.drawings import Change, change_chart
from cpo_ds.report.page import Drawing, Drawings, Section, Table, decimal
from cpo_ds.report.run_folder import RunFolder
from cpo_ds.storage.metrics_file import Line

Moves = dict[str, tuple[Line, Line]]  # by direction: its metrics at the first and latest evaluation

_MOST_OPEN = 12  # directions in a table that is not folded
_MOST = 24  # directions in the charts, those with most pairs; the table has all
_METRICS = {"reward_accuracy": "Reward accuracy", "reward_margin": "Reward margin"}


def directions_section(runs: Sequence[RunFolder]) -> Section | None:
    """The section; None if no run evaluated pairs by direction."""
    directions = {run.name: by_direction(run.held_out) for run in runs}
    sizes: dict[str, float] = {}
    for of_run in directions.values():
        for name, (_, after) in of_run.items():
            sizes[name] = max(sizes.get(name, 0), finite(after.get("pairs")) or 0)
    if not sizes:
        return None
    shown = sorted(sorted(sizes, key=lambda name: -sizes[name])[:_MOST])
    drawings = [
        drawing for key in _METRICS if (drawing := _drawing(key, shown, list(directions.values())))
    ]
    legend = tuple((colour_of(index), run.name) for index, run in enumerate(runs))
    explanation = (
        "An open circle is the first evaluation of a direction, a full one the latest. With few "
        "pairs, a direction's accuracy moves in large steps.",
    )
    notes = [f"Charts show the {_MOST} directions with most pairs."] * (len(sizes) > _MOST)
    parts = (
        Drawings(tuple(drawings), legend=legend if len(runs) > 1 else ()),
        _table(directions, sorted(sizes)),
    )
    title = "Held-out pairs by direction"
    return Section("directions", title, (), explanation, parts, tuple(notes))


def by_direction(held_out: Sequence[Line]) -> Moves:
    """The metrics of each direction at the first and at the latest evaluation."""
    if not held_out:
        return {}
    first, last = (_mapping(line.get("eval_directions")) for line in (held_out[0], held_out[-1]))
    return {name: (_mapping(first.get(name)), _mapping(after)) for name, after in last.items()}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _drawing(
    key: str,
    names: Sequence[str],
    runs: Sequence[Moves],
) -> Drawing | None:
    changes = []
    for name in names:
        for index, of_run in enumerate(runs):
            before, after = of_run.get(name, ({}, {}))
            numbers = finite(before.get(key)), finite(after.get(key))
            if numbers[0] is not None and numbers[1] is not None:
                changes.append(Change(name, colour_of(index), numbers[0], numbers[1]))
    if not changes:
        return None
    ends = [0.0, 1.0] if key == "reward_accuracy" else [0.0]
    ends += [value for change in changes for value in (change.before, change.after)]
    text = f"{_METRICS[key]} of each direction before and after; the table has the numbers."
    room = 0.03 * (max(ends) - min(ends))
    around = (min(ends) - room, max(ends) + room)
    return Drawing(_METRICS[key], change_chart(changes, around, text))


def _table(directions: dict[str, Moves], names: Sequence[str]) -> Table:
    groups = []
    for name in names:
        lines = []
        for run, of_run in directions.items():
            before, after = of_run.get(name, ({}, {}))
            if not after:
                continue
            numbers = [_text(one.get(key)) for key in _METRICS for one in (before, after)]
            pairs = finite(after.get("pairs"))
            names_run = (run,) * (len(directions) > 1)
            lines.append((*names_run, "–" if pairs is None else f"{pairs:,.0f}", *numbers))
        groups.append((name, tuple(lines)))
    run_column = ("run",) * (len(directions) > 1)
    columns = ("pairs", "accuracy, first", "latest", "margin, first", "latest")
    caption = "The numbers of all directions."
    names_of_columns = ("direction", *run_column, *columns)
    return Table(caption, names_of_columns, tuple(groups), ("run",), len(names) > _MOST_OPEN)


def _text(value: Any) -> str:
    given = finite(value)
    return "–" if given is None else decimal(given, 3)
