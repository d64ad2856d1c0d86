"""Draws the report's charts as SVG; equal numbers give equal bytes, and text stays text."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cpo_ds.prepare.analyses.systems import ReferenceComparison

BETTER, EQUAL, WORSE = "#0072B2", "#C9CCD1", "#E8B36B"
AGREEMENT_MARKERS = {
    "pairs ranked alike": ("o", "#0072B2"),
    "rows with the same best": ("s", "#009E73"),
    "rows with the same worst": ("^", "#D55E00"),
}
_PANELS_PER_LINE = 2
_WIDTH = 4.6  # inches; a phone shows nearly all of them, so that letters stay large
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": [
        "DejaVu Sans"
    ],  # comes with matplotlib, so the layout is the same everywhere
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8A8F98",
    "axes.axisbelow": True,
    "xtick.color": "#3C4148",
    "ytick.color": "#22262B",
    "ytick.left": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "cpo_ds",  # else ids are random
    "text.parse_math": False,  # names may hold dollar signs
}


def versus_chart(
    directions: Sequence[str], systems: Mapping[str, Sequence[ReferenceComparison]], metric: str
) -> bytes:
    """A panel for each system, with bars of better, equal and worse than the reference.

    Each direction is a line. `systems` holds a comparison for each direction.
    """
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid(systems, len(directions))
        lines = np.arange(len(directions))
        for panel, outcomes in zip(panels, systems.values(), strict=True):
            counts = np.array([[one.better, one.equal, one.worse] for one in outcomes], float)
            shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            left = np.zeros(len(lines))
            for share, colour in zip(shares.T, (BETTER, EQUAL, WORSE), strict=True):
                panel.barh(lines, share, 0.74, left=left, color=colour)
                left += share
            for line, one in zip(lines, outcomes, strict=True):
                panel.plot(one.interval, (line, line), color="black", linewidth=1.2)
            panel.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
            panel.set_xlim(0, 1)
            panel.set_xticks((0, 0.5, 1), ("0", "50", "100"))
        _name_lines(panels, directions)
        figure.supxlabel(f"% of rows, by {short(metric)}", fontsize=10.5)
        return _svg(figure)


def shares_chart(
    directions: Sequence[str], shares: Mapping[str, np.ndarray], colours: Sequence[str]
) -> bytes:
    """A panel for each title, with shares as stacked bars.

    A table of shares is [directions, systems], and each line of it adds up to 1.
    """
    with matplotlib.rc_context(_STYLE):
        figure, panels = _grid(shares, len(directions))
        lines = np.arange(len(directions))
        for panel, table in zip(panels, shares.values(), strict=True):
            left = np.zeros(len(lines))
            for share, colour in zip(table.T, colours, strict=True):
                panel.barh(lines, share, 0.74, left=left, color=colour, edgecolor="white")
                left += share
            panel.set_xlim(0, 1)
            panel.set_xticks((0, 0.5, 1), ("0", "50", "100"))
        _name_lines(panels, directions)
        figure.supxlabel("% of pairs", fontsize=10.5)
        return _svg(figure)


def distribution_chart(
    scores: Mapping[str, np.ndarray],
    directions: Sequence[str],
    means: np.ndarray,
    colours: Sequence[str],
    metric: str,
) -> bytes:
    """A violin of every system's scores, and below them their means.

    `means` is [directions, systems].
    """
    with matplotlib.rc_context(_STYLE):
        heights = [max(1.8, 1.0 + 0.27 * len(lines)) for lines in (scores, directions)]
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=heights)

        # Violins: histograms with the same bins for all systems.
        fewest = min(len(values) for values in scores.values())
        bins = int(np.clip(np.sqrt(fewest), 6, 48))
        edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins)
        for line, (values, colour) in enumerate(zip(scores.values(), colours, strict=True)):
            _violin(upper, line, values, edges, colour)
        _name_lines([upper], list(scores))
        upper.set_title("all rows")

        # Means: a dot for each system and direction.
        for column, colour in zip(means.T, colours, strict=True):
            lower.plot(column, np.arange(len(directions)), "o", color=colour, markersize=5.5)
        _name_lines([lower], directions)
        lower.set_title("means by direction")

        # Both panels show scores, on the same kind of axis.
        for panel in (upper, lower):
            panel.grid(axis="x", color="#E3E5E8")
            panel.xaxis.set_major_locator(MaxNLocator(5))
            panel.set_xlabel(short(metric))
        return _svg(figure)


def _violin(panel: Any, line: int, values: np.ndarray, edges: np.ndarray, colour: str) -> None:
    """Draws a mirrored histogram; a thick line spans the middle half, a white dot is the median."""
    counts = np.histogram(values, edges)[0]
    half = np.repeat(0.42 * counts / max(1, counts.max()), 2)
    panel.fill_between(
        np.repeat(edges, 2)[1:-1], line - half, line + half, color=colour, alpha=0.55, linewidth=0
    )
    if len(values):
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        panel.plot((low, high), (line, line), color="#22262B", linewidth=2.5)
        panel.plot(middle, line, "o", color="white", markeredgecolor="#22262B", markersize=4.5)


def agreement_chart(pairs: Sequence[str], values: Mapping[str, Sequence[float]]) -> bytes:
    """A line of markers for each pair of metrics, one for each of `AGREEMENT_MARKERS`."""
    with matplotlib.rc_context(_STYLE):
        height = 1.3 + 0.36 * len(pairs)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        panel = figure.subplots()
        lines = np.arange(len(pairs))
        for shift, (name, (marker, colour)) in zip(
            (0, -0.14, 0.14), AGREEMENT_MARKERS.items(), strict=True
        ):
            panel.plot(values[name], lines + shift, marker, color=colour, markersize=8)
        panel.set_xlim(0, 1)
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(axis="both", color="#E3E5E8")
        _name_lines([panel], pairs, longest=26)
        return _svg(figure)


def gain_chart(selecting: Sequence[str], evaluating: Sequence[str], gains: np.ndarray) -> bytes:
    """A grid of numbers, [selecting, evaluating]; higher ones are darker."""
    with matplotlib.rc_context(_STYLE):
        height = 1.4 + 0.42 * len(selecting)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        panel = figure.subplots()

        # The grid. Letters are white on dark fields.
        top = max(0.01, float(np.nanmax(gains, initial=0)))
        panel.imshow(gains, cmap="Blues", vmin=0, vmax=1.25 * top, aspect="auto")
        for line, column in product(range(len(selecting)), range(len(evaluating))):
            gain = gains[line, column]
            text = "–" if math.isnan(gain) else f"{gain:.2f}"
            colour = "white" if gain > 0.75 * top else "#22262B"
            panel.text(column, line, text, ha="center", va="center", color=colour)

        # The names of the metrics, as long as they fit.
        room = max(4, min(24, 30 // len(evaluating)))  # letters
        panel.set_xticks(range(len(evaluating)), [short(name, room) for name in evaluating])
        panel.xaxis.tick_top()
        panel.xaxis.set_label_position("top")
        panel.set_xlabel("evaluated by")
        panel.set_yticks(range(len(selecting)), [short(name, 16) for name in selecting])
        panel.set_ylabel("chosen by")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        return _svg(figure)


def short(name: str, longest: int = 20) -> str:
    """A name cut in its middle to at most `longest` letters; tables have the whole name."""
    name = "".join(letter if letter.isprintable() else " " for letter in name).strip()
    if len(name) <= longest:
        return name
    # The end is kept, as names differ there: wmt22-cometkiwi-da, wmt23-cometkiwi-da-xxl.
    end = (longest - 1) // 2
    return f"{name[: longest - 1 - end]}…{name[-end:]}"


def _grid(titles: Mapping[str, Any], num_lines: int) -> tuple[Figure, list[Any]]:
    """A figure with a titled panel for each key, each high enough for `num_lines` lines."""
    columns = min(_PANELS_PER_LINE, len(titles))
    lines = math.ceil(len(titles) / columns)
    size = (_WIDTH, lines * (0.75 + 0.24 * num_lines) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    # The last line of panels may have fewer.
    panels = list(figure.subplots(lines, columns, sharey=True, squeeze=False).flat)
    for panel in panels[len(titles) :]:
        figure.delaxes(panel)
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(short(title, 16))
    return figure, panels[: len(titles)]


def _name_lines(panels: Sequence[Any], names: Sequence[str], longest: int = 20) -> None:
    """Writes names beside the lines, the first on top."""
    panels[0].set_yticks(range(len(names)), [short(name, longest) for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)


def _svg(figure: Figure) -> bytes:
    """The figure as SVG."""
    file = io.BytesIO()
    # A date would change the bytes.
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # browsers have fonts for all scripts
        figure.savefig(file, format="svg", metadata=no_metadata, transparent=True)
    return file.getvalue()
