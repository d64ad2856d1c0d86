"""Numbers of a run against its steps: read from lines of metrics, smoothed, and thinned out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cpo_ds.data.json_text import finite
from cpo_ds.storage.metrics_file import Line

POINTS = 400  # of a curve in the page, however many steps are logged


class Series(NamedTuple):
    """Values, each with its step."""

    steps: list[float]
    values: list[float]


def series_of(lines: Iterable[Line], key: str) -> Series:
    """The numbers with a name, in order; lines without it are left out."""
    points = [(finite(line.get("step")), finite(line.get(key))) for line in lines]
    whole = [(step, value) for step, value in points if step is not None and value is not None]
    return Series([step for step, _ in whole], [value for _, value in whole])


def reach_of(count: int) -> int:
    """How many neighbours on either side smooth one of `count` values: more of many."""
    return round(0.5 * math.sqrt(count)) if count > 8 else 0


def smoothed(series: Series) -> Series:
    """The mean of each value and its neighbours on either side, as far as there are any."""
    count = len(series.values)
    reach = reach_of(count)
    sums = [0.0]
    for value in series.values:
        sums.append(sums[-1] + value)
    means = []
    for index in range(count):
        first, end = max(0, index - reach), min(count, index + reach + 1)
        means.append((sums[end] - sums[first]) / (end - first))
    return Series(series.steps, means)


def thinned(series: Series) -> Series:
    """At most about `POINTS` points: the lowest and the highest of neighbours, so no spike goes."""
    count = len(series.values)
    if count <= POINTS:
        return series
    kept: list[int] = []
    for bucket in range(POINTS // 2):
        indices = range(bucket * count * 2 // POINTS, (bucket + 1) * count * 2 // POINTS)
        extremes = {f(indices, key=series.values.__getitem__) for f in (min, max)}
        kept += sorted(extremes)
    return _at(series, kept)


def spaced(series: Series) -> Series:
    """At most about `POINTS` evenly spaced points, the first and the last among them."""
    last = len(series.values) - 1
    if last < POINTS:
        return series
    return _at(series, [index * last // (POINTS - 1) for index in range(POINTS)])


def _at(series: Series, indices: Sequence[int]) -> Series:
    return Series([series.steps[i] for i in indices], [series.values[i] for i in indices])


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of all values lies. `values` must not be empty."""
    return sorted(values)[round(share * (len(values) - 1))]
