"""Figures of several panels, and what the pages of these benchmarks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from report_text import ENVIRONMENT, Line

_MARKERS = ("o", "s", "^", "D", "v", "P")


def grouped(lines: Sequence[Line], *names: str) -> dict[tuple, list[Line]]:
    """Lines by the values of these columns, in the order of their first appearance."""
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in names), []).append(line)
    return groups


def good(runs: Sequence[Line]) -> list[Line]:
    """The runs that ended well."""
    return [run for run in runs if not run.get("error")]


def where(line: Line) -> str:
    """Model and device, for titles."""
    return f"{line['model']} in {line['dtype']} on {line['device']}"


@dataclass(frozen=True)
class Panel:
    """One of several charts in a figure: lines by name."""

    x_axis: str
    y_axis: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    title: str = ""
    log_y: bool = False


def draw_panels(
    path: Path,
    title: str,
    panels: Sequence[Panel],
    colours: Mapping[str, str],
    *,
    columns: int,
    dashed: Sequence[str] = (),
) -> None:
    """Panels row by row, one legend for all of them; x axes are logarithmic."""
    rows = -(-len(panels) // columns)
    width = {1: 8.0, 2: 10.0}.get(columns, 3.4 * columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, 1.2 + 3.1 * rows), layout="constrained", squeeze=False
    )
    names: list[str] = []
    for panel, axes in zip(panels, grid.flat, strict=True):
        for name, points in panel.series.items():
            names += [name] if name not in names else []
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, color=colours[name], **_look(name, names, dashed))
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in panel.series.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        if panel.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        else:
            axes.set_ylim(0, 1.08 * max(y for points in panel.series.values() for _, y in points))
        axes.set(xlabel=panel.x_axis, ylabel=panel.y_axis, title=panel.title)
        axes.grid(color="#DDDDDD")
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=colours[name], label=name, **_look(name, names, dashed))
        for name in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130, metadata={"Software": None})  # the same bytes whenever drawn
    plt.close(figure)


def _look(name: str, names: Sequence[str], dashed: Sequence[str]) -> dict[str, Any]:
    style = "--" if name in dashed else "-"
    marker = _MARKERS[list(names).index(name) % len(_MARKERS)]
    return {"linestyle": style, "marker": marker, "linewidth": 1.8, "markersize": 5}


def repeats(lines: list[Line]) -> int:
    """How often each run was made."""
    return 1 + max(line["repeat"] for line in lines)


def about(settings: Mapping[str, str], last: Line) -> str:
    """Settings and environment, a line each."""
    facts = dict(settings) | {name: str(last[name]) for name in ENVIRONMENT if name in last}
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
