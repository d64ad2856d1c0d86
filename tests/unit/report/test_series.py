"""Numbers of a run against its steps: smoothed without a shift, thinned without losing a spike."""

from __future__ import annotations

import math

import pytest

from cpo_ds.report.scale import scale, short, ticks
from cpo_ds.report.series import POINTS, Series, series_of, smoothed, spaced, thinned


def counted(values: list[float]) -> Series:
    return Series([float(step) for step in range(len(values))], values)


def test_only_finite_numbers_count() -> None:
    values = [1, None, "2", math.nan, math.inf, True, 10**400, [3], 2.5]
    lines = [{"step": step, "loss": value} for step, value in enumerate(values)]
    assert series_of([*lines, {"step": "9", "loss": 1}, {"loss": 1}], "loss") == ([0, 8], [1, 2.5])


@pytest.mark.parametrize("count", [0, 1, 8, 9, 100, 5000])
def test_a_straight_line_stays_where_it_is(count: int) -> None:
    series = counted([3.0 * step for step in range(count)])
    assert smoothed(series).steps == series.steps
    reach = round(0.5 * math.sqrt(count))
    inner = slice(reach, max(reach, count - reach))
    assert smoothed(series).values[inner] == pytest.approx(series.values[inner])


def test_each_smoothed_value_is_the_mean_of_its_neighbours() -> None:
    series = counted([float(number % 7) for number in range(36)])
    for index, value in enumerate(smoothed(series).values):
        near = series.values[max(0, index - 3) : index + 4]
        assert value == pytest.approx(sum(near) / len(near))


def test_thinning_keeps_every_spike_and_few_points() -> None:
    values = [math.sin(step / 500) for step in range(100_000)]
    values[31_337], values[77_777] = 50.0, -50.0
    few = thinned(counted(values))
    assert len(few.steps) <= POINTS and {50.0, -50.0} <= set(few.values)
    assert few.steps == sorted(few.steps)
    assert all(values[int(step)] == value for step, value in zip(*few, strict=True))
    line = spaced(counted(values))
    assert len(line.steps) == POINTS and (line.steps[0], line.steps[-1]) == (0, 99_999)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 1e-4), (-773.5, -240.2), (0, 100_000), (1.0, 1.0000001)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    marks = ticks(low, high)
    assert 1 <= len(marks) <= 6
    room = 1e-6 * (high - low)
    assert all(low - room <= mark <= high + room for mark in marks)


def test_positions_stop_at_the_frame_even_of_equal_values() -> None:
    axis = scale(2.0, 2.0, 44, 348)
    assert axis(2.0) == pytest.approx(196) and axis(-1e9) == 44 and axis(1e9) == 348


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (-1.5, "−1.5"), (5e-5, "5e−5"), (12_000, "12k"), (9000, "9000"),
     (3_500_000, "3.5M"), (-2e9, "−2G")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text
