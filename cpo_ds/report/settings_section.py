"""The sections on a run's data, and on its settings, versions and starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cpo_ds.report.curves_section import colour_of
from cpo_ds.report.drawings import histogram_chart
from cpo_ds.report.page import Drawing, Drawings, Fold, Part, Section, Table
from cpo_ds.report.pair_lengths import histogram, read_lengths
from cpo_ds.report.run_folder import RunFolder


def data_section(runs: Sequence[RunFolder]) -> Section:
    """Lengths of training pairs, and what reading the data counted."""
    lengths = {run.name: read_lengths(run.path) for run in runs}
    drawings = [
        drawing
        for part, title in (
            ("prompt", "Prompt, tokens"),
            ("chosen", "Chosen, tokens"),
            ("rejected", "Rejected, tokens"),
        )
        if (drawing := _lengths(part, title, [lengths[run.name].get(part) for run in runs]))
    ]
    legend = tuple((colour_of(index), run.name) for index, run in enumerate(runs))
    parts: list[Part] = []
    if drawings:
        caption = "Lengths of training pairs; a completion's end-of-sequence token counts."
        parts.append(Drawings(tuple(drawings), caption, legend if len(runs) > 1 else ()))
    parts += [
        Fold(f"{run.name}: rows read, and pairs kept and dropped", "\n".join(run.data_lines))
        for run in runs
        if run.data_lines
    ]
    notes = [
        f"Lengths of {run.name} are not shown: its folder has no tokenized pairs."
        for run in runs
        if not lengths[run.name]
    ]
    dropped = [
        f"{run.name}: {line.strip()}."
        for run in runs
        for line in run.data_lines
        if line.strip().startswith("dropped")
    ]
    return Section("data", "Data", tuple(dropped), (), tuple(parts), tuple(notes))


def _lengths(part: str, title: str, of_runs: Sequence[np.ndarray | None]) -> Drawing | None:
    numbered = [(index, one) for index, one in enumerate(of_runs) if one is not None and len(one)]
    if not numbered:
        return None
    together = np.concatenate([one for _, one in numbered])
    ends = (0.0, max(1.0, float(np.quantile(together, 0.995))))
    charts = [histogram(part, colour_of(index), one, ends) for index, one in numbered]
    text = f"Histogram of the {part}'s tokens."
    middle, longest = np.median(together), together.max()
    note = f"median {middle:g}, longest {longest:,} (longer ones than the axis are in its last bar)"
    return Drawing(title, histogram_chart(charts, text, whole=True), note)


def settings_section(runs: Sequence[RunFolder]) -> Section:
    """Settings in which runs differ, all settings, versions, and starts."""
    parts: list[Part] = []
    if len(runs) > 1 and (table := _differences(runs)):
        parts.append(table)
    if any(run.starts for run in runs):
        parts.append(_starts(runs))
    parts += [
        Fold(f"{run.name}: configuration and versions", run.config_text)
        for run in runs
        if run.config_text
    ]
    notes = [f"{run.name} has no config.yaml." for run in runs if not run.config_text]
    return Section(
        "settings", "Settings, versions and starts", parts=tuple(parts), notes=tuple(notes)
    )


def _differences(runs: Sequence[RunFolder]) -> Table | None:
    """A line for each setting in which runs differ."""
    flat = [_flat(run.config | {"versions": run.versions}) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    groups = tuple(
        (name, (tuple(settings.get(name, "–") for settings in flat),))
        for name in names
        if len({settings.get(name) for settings in flat}) > 1
    )
    if not groups:
        return None
    columns = ("setting", *(run.name for run in runs))
    return Table("Settings in which the runs differ.", columns, groups, columns[1:])


def _flat(settings: Mapping[Any, Any], before: str = "") -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{before}{key}"
        values |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: str(value)}
    return values


def _starts(runs: Sequence[RunFolder]) -> Table:
    groups = tuple(
        (run.name, tuple(
            (str(number), start.time, start.host, f"step {start.step}")
            for number, start in enumerate(run.starts, start=1)
        ))
        for run in runs
        if run.starts
    )  # fmt: skip
    columns = ("run", "start", "time", "host of rank 0", "went on from")
    return Table("Starts, by the logs in the run's folder.", columns, groups, columns[2:])
