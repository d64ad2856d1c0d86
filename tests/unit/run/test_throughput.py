"""Throughput by a clock of the test's own, peaks of known devices, memory of this process."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from cpo_ds.run.throughput import Stopwatch, peak_memory_gib, peak_tflops
from cpo_ds.schema import StepTotals

TOTALS = StepTotals(
    pairs=4, comparisons=4, chosen_tokens=10, scored_tokens=25, unique_tokens=70, padded_tokens=99
)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_of_known_devices(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert peak_tflops(torch.device("cuda")) == peak
    assert peak_tflops(torch.device("cpu")) is None


def test_memory_of_this_process_is_counted_in_gib() -> None:
    assert 0.05 < peak_memory_gib(torch.device("cpu")) < 100


def test_stopwatch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 108.0, 111.0, 111.0 + 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()  # at 100
    watch.count(TOTALS, 3e12)
    watch.go_on(watch.pause())  # an evaluation from 103 to 108
    watch.count(TOTALS, 3e12)
    rates = watch.read(world_size=2, peak=10.0)  # at 111: 11 seconds, 5 of which do not count
    assert rates == {
        "step_seconds": 3.0,
        "pairs_per_second": pytest.approx(8 / 6),
        "tokens_per_second": pytest.approx(140 / 6),
        "model_tflops": pytest.approx(6 / 6 / 2),  # a device's share of 6 TFLOP in 6 seconds
        "mfu": pytest.approx(0.05),
    }
    watch.count(TOTALS, 0.0)
    again = watch.read(world_size=1, peak=None)
    assert again["pairs_per_second"] == 2.0 and again["mfu"] is None
