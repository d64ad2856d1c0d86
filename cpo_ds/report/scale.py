"""Axes of charts: round ticks, short numbers, and positions between two ends."""

from __future__ import annotations

import math
from typing import NamedTuple


class Scale(NamedTuple):
    """Maps values from `low` to `high` to positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value; values outside the ends stop at them."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def scale(low: float, high: float, start: float, end: float) -> Scale:
    """A scale whose ends are apart, even if the values are not."""
    if not high > low:
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    return Scale(low, high, start, end)


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` of them; with `whole`, integers alone."""
    rough = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= rough)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in a few letters: 0.25, 12k, 3.5M, 2e-5; with a true minus sign."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            unit = 1e3 if letter == "k" else unit
            return f"{value / unit:.4g}{letter}".replace("-", "−")
    if size < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        text = f"{float(digits):g}e{int(power)}"
        return text.replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
