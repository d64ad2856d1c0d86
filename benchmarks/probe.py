"""Time and memory of the process that trains: resident on a CPU (Linux), allocated on a GPU."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


class Probe:
    """Takes the time of each step and the memory of the process."""

    def __init__(self, warmup_steps: int, timed_steps: int) -> None:
        self._warmup_steps = warmup_steps
        self._steps = warmup_steps + timed_steps
        self._on_gpu = torch.cuda.is_available()
        self._ticks: list[float] = []
        self._cpu_ticks: list[float] = []
        self._before = self._loaded = 0.0
        self.losses: list[Any] = []  # a float or a scalar tensor per step

    def model_is_loaded(self) -> None:
        """Marks the point from which growth is counted: the policy is there, nothing else."""
        self._before, self._loaded = self._peak(), self._now()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def step_is_done(self) -> bool:
        """Takes the time; returns whether this was the last step."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._ticks.append(time.perf_counter())
        self._cpu_ticks.append(time.process_time())
        return len(self._ticks) == self._steps

    def result(self) -> dict[str, Any]:
        """Everything measured, for the results file."""
        first = self._warmup_steps - 1
        ticks = self._ticks[first:]
        steps = [later - sooner for sooner, later in pairwise(ticks)]
        after = self._peak()
        return {
            "seconds": sum(steps),
            "cpu_seconds": self._cpu_ticks[-1] - self._cpu_ticks[first],
            "step_seconds": [round(seconds, 4) for seconds in steps],
            "losses": [float(loss) for loss in self.losses],
            "peak_memory_gib": max(self._before, after),
            "peak_growth_gib": after - self._loaded,
        }

    def _peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self._on_gpu else _status("VmHWM")

    def _now(self) -> float:
        return torch.cuda.memory_allocated() / 2**30 if self._on_gpu else _status("VmRSS")


def _status(name: str) -> float:
    """A size in this process's status, in GiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(name + ":"))
    return int(line.split()[1]) / 2**20
