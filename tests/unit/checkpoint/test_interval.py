"""When a checkpoint is due, by a clock that the test sets."""

from __future__ import annotations

import pytest

from cpo_ds.checkpoint.interval import SaveInterval
from cpo_ds.config import CheckpointConfig
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config


class Clock:
    """Seconds that a test moves."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_minutes_count_from_the_start_and_from_each_checkpoint() -> None:
    clock = Clock()
    interval = SaveInterval(CheckpointConfig(every_minutes=2), clock)
    assert not interval.is_over
    clock.seconds += 119.9
    assert not interval.is_over
    clock.seconds += 0.1
    assert interval.is_over
    interval.begin()
    assert not interval.is_over
    clock.seconds += 120
    assert interval.is_over


def test_steps_and_minutes_are_apart_and_both_may_be_missing() -> None:
    clock = Clock()
    neither, steps = SaveInterval(clock=clock), SaveInterval(CheckpointConfig(every_steps=3), clock)
    clock.seconds += 1e9
    assert not (neither.is_over or neither.ends_at(3) or steps.is_over)
    assert [step for step in range(1, 10) if steps.ends_at(step)] == [3, 6, 9]


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), "soon"])
def test_wrong_minutes_are_refused_by_name(minutes: object) -> None:
    values = {
        "model": {"name_or_path": "m"},
        "data": {"format": "sample"},
        "checkpoint": {"every_minutes": minutes},
    }
    with pytest.raises(UserError, match=r"checkpoint\.every_minutes"):
        parse_config(values, "test")
