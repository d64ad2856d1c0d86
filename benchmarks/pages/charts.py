"""The one module of charts: horizontal bars, lines over a size, figures of several panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

# By method, by part of memory or of a run: one colour wherever it appears (after Okabe and Ito).
COLOURS = {
    "cpo": "#0072B2",
    "dpo-reference": "#D55E00",
    "dpo-adapter": "#E69F00",
    "dpo-precomputed": "#CC79A7",
    "trl-cpo": "#56B4E9",
    "trl-dpo": "#8C510A",
    "liger-cpo": "#009E73",
    "base": "#999999",
    "sft": "#009E73",
    "dpo": "#D55E00",
    "cpo-without-nll": "#56B4E9",
    "cpo-noised": "#E69F00",
    "weights": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer": "#009E73",
    "reference": "#D55E00",
    "activations": "#E69F00",
    "head": "#CC79A7",
    "activations and head": "#F3C98B",
    "libraries": "#999999",
    "other": "#CCCCCC",
    "training": "#BBBBBB",
    "saving": "#CC79A7",
    "lost work": "#D55E00",
    "notice": "#F0E442",
    "launch": "#56B4E9",
    "read": "#009E73",
    "load": "#0072B2",
    "first step": "#E69F00",
}
_GREY = "#777777"
_MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Bar:
    """One bar: parts from left to right, the text at its end, and its range if it has one."""

    label: str
    parts: Mapping[str, float]  # name in COLOURS -> size
    text: str
    spread: tuple[float, float] | None = None  # least and most
    group: str = ""  # bars of one group stand together under its name


def bars(
    path: Path, title: str, rows: Sequence[Bar], axis: str, *, legend: Mapping[str, str] | None
) -> None:
    """Draws horizontal bars, the first on top. `legend` maps parts to their names in the legend."""
    places, names, height = _places(rows)
    # Bars with their parts, range and text.
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.36 * height), layout="constrained")
    ends = [max(sum(row.parts.values()), *(row.spread or (0.0,))) for row in rows]
    longest = max(ends)
    for row, height_of_bar, end in zip(rows, places, ends, strict=True):
        left = 0.0
        for part, size in row.parts.items():
            axes.barh(height_of_bar, size, left=left, color=COLOURS.get(part, _GREY), height=0.74)
            left += size
        if row.spread:
            axes.plot(
                row.spread, [height_of_bar, height_of_bar], color="black", linewidth=1.2, marker="|"
            )
        axes.text(end + 0.01 * longest, height_of_bar, row.text, va="center", fontsize=9)
    for height_of_bar, name in names:
        axes.text(0, height_of_bar, name, va="center", fontsize=10, fontweight="bold")
    # Axes and legend.
    axes.set_yticks(places, [row.label for row in rows])
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_xlim(0, 1.14 * longest)
    axes.set_xlabel(axis)
    axes.grid(axis="x", color="#DDDDDD")
    if legend:
        used = {part for row in rows for part in row.parts}
        handles = [Patch(color=COLOURS[p], label=name) for p, name in legend.items() if p in used]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9
        )
    _save(figure, axes, path, title)


def _places(rows: Sequence[Bar]) -> tuple[list[float], list[tuple[float, str]], float]:
    """Heights of bars, of their groups' names, and of the whole."""
    places: list[float] = []
    names: list[tuple[float, str]] = []
    at, group = 0.0, ""
    for row in rows:
        if row.group != group:
            group = row.group
            names.append((at, group))
            at += 1
        places.append(at)
        at += 1
    return places, names, at


def lines(
    path: Path,
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_axis: str,
    y_axis: str,
    *,
    labels: Mapping[str, str] | None = None,
    colours: Mapping[str, str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Draws a line with a mark at each point for each series.

    Series are named as in COLOURS or in `colours`. `labels` maps them to names in the legend.
    """
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    markers = [m for m in Line2D.markers if m in ("o", "s", "^", "D", "v", "P", "X")]
    shown = {**COLOURS, **(colours or {})}
    for number, (name, points) in enumerate(series.items()):
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(
            xs, ys, color=shown.get(name), marker=markers[number % len(markers)],
            label=(labels or {}).get(name, name), linewidth=1.8, markersize=6,
        )  # fmt: skip
    # Axes and legend.
    if log_x:
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in series.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x_axis)
    axes.set_ylabel(y_axis)
    axes.grid(color="#DDDDDD")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    _save(figure, axes, path, title)


def _save(figure: Any, axes: Any, path: Path, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})  # the same bytes whenever drawn
    plt.close(figure)


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
    """Draws panels row by row with one legend for all of them; x axes are logarithmic."""
    rows = -(-len(panels) // columns)
    width = {1: 8.0, 2: 10.0}.get(columns, 3.4 * columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, 1.2 + 3.1 * rows), layout="constrained", squeeze=False
    )
    # Lines and axes of each panel; a name looks the same in all panels.
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
    # The legend of all panels, and the title.
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
