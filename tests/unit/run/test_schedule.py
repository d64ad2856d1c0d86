"""Learning rate by step: hand-worked numbers, and transformers' schedulers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from cpo_ds.config import OptimConfig
from cpo_ds.run.learning_rate import learning_rate


def rates(total: int, **optim: Any) -> list[float]:
    config = OptimConfig(**{"learning_rate": 1.0, "warmup_ratio": 0.0} | optim)
    return [learning_rate(step, total, config) for step in range(1, total + 1)]


def test_shapes_by_hand() -> None:
    """Nine steps, two of warm-up; decays would reach zero at the tenth, eight after the peak."""
    eighths = [n / 8 for n in range(7, 0, -1)]
    assert rates(9, schedule="linear", warmup_ratio=0.2) == pytest.approx([0.5, 1.0, *eighths])
    assert rates(10, schedule="constant", warmup_ratio=0.2) == [0.5, *[1.0] * 9]
    cosine = rates(9, schedule="cosine", warmup_ratio=0.2)
    assert cosine[:2] == [0.5, 1.0]
    assert cosine[3] == pytest.approx((1 + 0.5**0.5) / 2)  # a quarter of the way: cos 45 degrees
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[8] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    inverse = rates(10, schedule="inverse_sqrt", warmup_ratio=0.2)
    assert inverse[:2] == [0.5, 1.0]
    assert inverse[7] == pytest.approx(0.5)  # step 8 = 4 x 2: 1 / sqrt(4)


def test_inverse_sqrt_of_the_alma_r_recipe() -> None:
    """174 steps of 128 pairs, ceil(1.74) = 2 of warm-up: 1e-4 sqrt(2 / 174) = 1.0721e-5."""
    got = rates(174, learning_rate=1e-4, warmup_ratio=0.01, schedule="inverse_sqrt")
    assert got[:2] == pytest.approx([0.5e-4, 1e-4])
    assert got[-1] == pytest.approx(1.0721e-5, rel=1e-4)


def test_without_warm_up_inverse_sqrt_has_a_timescale_of_10000() -> None:
    got = rates(30_001, schedule="inverse_sqrt")
    assert got[0] == pytest.approx(1.0, abs=1e-4)
    assert got[29_999] == pytest.approx(0.5)  # sqrt((30000 + 10000) / 10000) = 2


@pytest.mark.parametrize(("total", "warmup"), [(1, 1), (100, 1), (101, 2), (174, 2), (1388, 14)])
def test_warm_up_of_one_percent_rounds_up(total: int, warmup: int) -> None:
    got = rates(total, warmup_ratio=0.01)
    assert got[:warmup] == pytest.approx([(n + 1) / warmup for n in range(warmup)])
    assert all(rate < 1.0 for rate in got[warmup:])


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 3, 10])
def test_transformers_schedulers_give_the_same_one_step_later(schedule: str, warmup: int) -> None:
    """Ours at steps 1 to 20 are its lambdas of 21 steps, without the zeros at 0 and 21."""
    name = {"constant": "constant_with_warmup"}.get(schedule, schedule)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler = transformers.get_scheduler(name, optimizer, warmup, num_training_steps=21)
    theirs = []
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        theirs.append(scheduler.get_last_lr()[0])
    ours = rates(20, learning_rate=0.02, schedule=schedule, warmup_ratio=warmup / 20)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "linear", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7, 500])
def test_rates_rise_to_the_peak_and_never_above(schedule: str, ratio: float, total: int) -> None:
    got = rates(total, schedule=schedule, warmup_ratio=ratio)
    assert all(0.0 <= rate <= 1.0 for rate in got)
    peak = got.index(max(got))
    assert got[: peak + 1] == sorted(got[: peak + 1])
    assert got[peak:] == sorted(got[peak:], reverse=True)
    assert min(got) > 0.0
