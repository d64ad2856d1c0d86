"""Where a run is heading: its time left, and whether its loss rises."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from cpo_ds.run.outlook import clock, start_of_rise, time_left

# Seconds of the demo's steps on two busy cores, the first one slow.
DEMO = [
    24.4,
    6.8,
    8.1,
    9.8,
    7.8,
    8.2,
    5.7,
    6.5,
    5.6,
    6.0,
    5.6,
    5.4,
    11.1,
    7.2,
    4.9,
    8.9,
    11.5,
    10.3,
]


def test_the_time_left_does_not_jump() -> None:
    """From one step to the next the estimated length of a step changes by less than a tenth."""
    estimates = [time_left(DEMO[:done], 1) for done in range(4, len(DEMO) + 1)]
    assert all(abs(b / a - 1) < 0.1 for a, b in pairwise(estimates))
    jumps = [abs(b / a - 1) for a, b in pairwise(DEMO[3:])]
    assert max(jumps) > 1  # by the last step alone it would double
    assert time_left([2.0], 3) == 6.0 and time_left(DEMO, 0) == 0.0
    assert time_left([5.0] * 9 + [500.0, 0.1], 10) == 50.0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00:00"), (63, "0:01:05"), (599, "0:10:00"), (629, "0:10:00"), (7290, "2:02:00")],
)
def test_seconds_on_a_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_a_loss_that_doubles_and_stays_high_has_risen() -> None:
    assert start_of_rise([2.0] * 5 + [2.0, 6.0] + [4.5] * 12) == 2.0
    assert start_of_rise([0.1] * 5 + [1.2] * 12) == 0.1
    assert start_of_rise([-3.0] * 5 + [1.0] * 12) == -3.0


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] * 5 + [9.0] * 11,  # not yet long enough
        [2.0] * 5 + [9.0] * 30 + [3.0],  # it came down again
        [2.0] * 5 + [3.9] * 30,  # not doubled
        [0.01] * 5 + [0.5] * 30,  # fifty times a loss of nearly nothing
        [],
    ],
)
def test_other_losses_have_not_risen(losses: list[float]) -> None:
    assert start_of_rise(losses) is None


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.5])  # of a step with some, few or one pair
def test_a_normal_run_is_never_warned(spread: float) -> None:
    """Losses that fall to two thirds, and vary from step to step as those of real pairs do."""
    for seed in range(20):
        noise = random.Random(seed)
        losses = [4 * (1 - step / 1500) * noise.lognormvariate(0, spread) for step in range(500)]
        warned = [n for n in range(len(losses)) if start_of_rise(losses[:n]) is not None]
        assert not warned
