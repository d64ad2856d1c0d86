"""Charts as SVG inside a page: lines, histograms, and changes between two values.

Colours are numbers of those in page.css.jinja. Drawings are as wide as a phone, so that their
letters have the same size on every screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from cpo_ds.report.scale import Scale, scale, short, ticks
from cpo_ds.report.series import Series

COLOURS = 8  # of the page
_MOST_DOTS = 40  # on a line of held-out values
_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 348, 8, 176  # the frame of a chart


class Line(NamedTuple):
    """A curve: raw values, their smoothed line, and points of held-out values."""

    name: str
    colour: int
    raw: Series
    smooth: Series
    held_out: Series
    held_out_colour: int


class Histogram(NamedTuple):
    """Counts of values between edges, [bins] and [bins + 1]."""

    name: str
    colour: int
    edges: Sequence[float]
    counts: Sequence[float]


class Change(NamedTuple):
    """A value before and after, on a line with its name."""

    name: str
    colour: int
    before: float
    after: float


def line_chart(
    lines: Sequence[Line],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    text: str,
    *,
    whole: bool = True,
) -> Markup:
    """Curves over steps, or over any numbers if these are not `whole`.

    Values outside `y_range` stop at the frame. `text` describes the chart.
    """
    x, y = scale(*x_range, _LEFT, _RIGHT), scale(*y_range, _BOTTOM, _TOP)
    parts = [_grid(x, y, whole=whole)]
    for line in lines:
        parts.append(_path("raw", line.colour, line.raw, x, y))
        parts.append(_path("smooth", line.colour, line.smooth, x, y, line.name))
    for line in lines:  # above all curves
        name = f"{line.name}, held out"
        parts.append(_path("held", line.held_out_colour, line.held_out, x, y, name))
        parts.append(_dots(line.held_out_colour, line.held_out, x, y))
    parts.append(Markup('<path class="ruler" d=""/>'))
    data = Markup(' data-x="{:g},{:g},{:g},{:g}" data-y="{!r},{!r},{:g},{:g}"').format(*x, *y)
    return _svg(parts, text, _HEIGHT, data)


def histogram_chart(histograms: Sequence[Histogram], text: str, *, whole: bool = False) -> Markup:
    """Counts as areas over each other, from zero; `whole` asks for integers below the axis."""
    edges = [edge for histogram in histograms for edge in histogram.edges]
    top = max(max(histogram.counts, default=0) for histogram in histograms)
    x = scale(min(edges), max(edges), _LEFT, _RIGHT)
    y = scale(0, (top or 1) * 1.05, _BOTTOM, _TOP)
    parts = [_grid(x, y, whole=whole, counts=True)]
    for histogram in histograms:
        outline = [f"M{_at(x(histogram.edges[0]))},{_BOTTOM}"]
        for count, left, right in zip(
            histogram.counts, histogram.edges, histogram.edges[1:], strict=False
        ):
            outline.append(f"L{_at(x(left))},{_at(y(count))}H{_at(x(right))}")
        outline.append(f"V{_BOTTOM}Z")
        path = "".join(outline)
        parts.append(Markup('<path class="area c{}" d="{}"/>').format(histogram.colour, path))
    return _svg(parts, text, _HEIGHT)


def change_chart(changes: Sequence[Change], ends: tuple[float, float], text: str) -> Markup:
    """A line for each change: an open circle before, a full one after."""
    left, row = 84, 19
    bottom = _TOP + row * len(changes)
    x = scale(*ends, left, _RIGHT)
    parts = [Markup('<path class="grid" d="{}"/>').format(_uprights(x, bottom))]
    for tick in _x_ticks(x, whole=False):
        parts.append(_label(x(tick), bottom + 16, short(tick), "middle"))
    shown = ""
    for index, change in enumerate(changes):
        middle = _TOP + row * (index + 0.5)
        if change.name != shown:
            parts.append(_label(left - 8, middle + 4, change.name[:14], "end", "name"))
            shown = change.name
        before, after = _at(x(change.before)), _at(x(change.after))
        parts.append(
            Markup(
                '<g class="c{0}"><path class="link" d="M{1},{3}H{2}"/>'
                '<circle class="from" cx="{1}" cy="{3}" r="3.6"/>'
                '<circle class="to" cx="{2}" cy="{3}" r="4.6"/></g>'
            ).format(change.colour, before, after, _at(middle))
        )
    return _svg(parts, text, bottom + 24)


def _grid(x: Scale, y: Scale, *, whole: bool, counts: bool = False) -> Markup:
    """The frame's lines, with the numbers at both axes."""
    across = ticks(y.low, y.high, 4, whole=counts)
    lines = Markup("").join(
        Markup("M{},{}H{}").format(_LEFT, _at(y(tick)), _RIGHT) for tick in across
    )
    parts = [Markup('<path class="grid" d="{}"/>').format(lines)]
    parts.append(Markup('<path class="axis" d="M{},{}H{}"/>').format(_LEFT, _BOTTOM, _RIGHT))
    parts += [_label(_LEFT - 6, y(tick) + 4, short(tick), "end") for tick in across]
    parts += [_label(x(tick), _BOTTOM + 16, short(tick), "middle") for tick in _x_ticks(x, whole)]
    return Markup("").join(parts)


def _x_ticks(x: Scale, whole: bool) -> list[float]:
    return ticks(x.low, x.high, 6, whole=whole)


def _uprights(x: Scale, bottom: float) -> Markup:
    marks = _x_ticks(x, whole=False)
    return Markup("").join(Markup("M{},{}V{}").format(_at(x(tick)), _TOP, bottom) for tick in marks)


def _path(kind: str, colour: int, series: Series, x: Scale, y: Scale, name: str = "") -> Markup:
    """A line through points; `name` is what the page shows under the pointer."""
    points = [f"{_at(x(step))},{_at(y(value))}" for step, value in zip(*series, strict=True)]
    if not points:
        return Markup("")
    named = Markup(' data-name="{}"').format(name) if name else ""
    path = "M" + "L".join(points)
    return Markup('<path class="{} c{}"{} d="{}"/>').format(kind, colour, named, path)


def _dots(colour: int, series: Series, x: Scale, y: Scale) -> Markup:
    """A dot on each point, unless there are so many that they would hide the line."""
    if len(series.steps) > _MOST_DOTS:
        return Markup("")
    points = zip(*series, strict=True)
    dots = "".join(f"M{_at(x(step))},{_at(y(value))}h0" for step, value in points)
    return Markup('<path class="dots c{}" d="{}"/>').format(colour, dots)


def _label(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>').format(
        _at(x), _at(y), anchor, kind, text
    )


def _at(position: float) -> str:
    """A position in hundredths of a pixel."""
    return f"{position:.2f}".rstrip("0").rstrip(".")


def _svg(parts: Iterable[Markup], text: str, height: float, data: Markup | str = "") -> Markup:
    return Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}"{}>{}</svg>').format(
        _WIDTH, height, text, data, Markup("").join(parts)
    )
