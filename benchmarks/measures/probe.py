"""Time and memory of the process that trains: resident on a CPU (Linux), allocated on a GPU."""

from __future__ import annotations

import ctypes
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

GIB = 2**30


def memory_now() -> float:
    """Memory held now, in GiB."""
    return torch.cuda.memory_allocated() / GIB if torch.cuda.is_available() else _status("VmRSS")


def memory_peak() -> float:
    """The most memory held since the process began, or since `reset_peak`, in GiB."""
    on_gpu = torch.cuda.is_available()
    return torch.cuda.max_memory_allocated() / GIB if on_gpu else _status("VmHWM")


def reset_peak() -> None:
    """Lets the peak begin anew at the memory held now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def return_freed_memory() -> None:
    """Makes freed memory go back to the system at once, so that resident memory is memory in use.

    This costs time, so call it when the clock has stopped. It does nothing on a GPU, whose
    allocator counts by itself, and without the GNU C library.
    """
    if torch.cuda.is_available():
        return
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: blocks from this size are maps of their own
        library.mallopt(-4, 2**16)  # M_MMAP_MAX: how many such maps; a run on a CPU allows none
        library.mallopt(-1, 2**16)  # M_TRIM_THRESHOLD
        library.malloc_trim(0)
    except (OSError, AttributeError):
        return


class Probe:
    """Takes the time of each step and the memory of the process."""

    def __init__(self, warmup_steps: int, timed_steps: int) -> None:
        self._warmup_steps = warmup_steps
        self._steps = warmup_steps + timed_steps
        self._on_gpu = torch.cuda.is_available()
        self._ticks: list[float] = []
        self._cpu_ticks: list[float] = []
        self._thread_ticks: list[float] = []
        self._peak = self._reserved = 0.0
        self.libraries_gib = 0.0
        self.losses: list[Any] = []  # a float or a scalar tensor per step

    def libraries_are_loaded(self) -> None:
        """Marks the memory that the process holds before the model is loaded."""
        self.libraries_gib = memory_now()

    def step_is_done(self) -> bool:
        """Takes the time of a step; returns whether it was the last step."""
        if self._on_gpu:
            torch.cuda.synchronize()
        self._ticks.append(time.perf_counter())
        self._cpu_ticks.append(time.process_time())
        self._thread_ticks.append(time.thread_time())
        is_last = len(self._ticks) == self._steps
        if is_last:
            self._peak = memory_peak()
            self._reserved = torch.cuda.max_memory_reserved() / GIB if self._on_gpu else 0.0
        return is_last

    def result(self) -> dict[str, Any]:
        """Returns everything measured up to the last step, for the results file.

        `cpu_seconds` are those of all threads. With one thread, other programs on the machine
        disturb them less than `seconds`. `thread_seconds` are those of the thread that trains,
        which uses none while it waits for another rank.
        """
        first = self._warmup_steps - 1
        steps = [later - sooner for sooner, later in pairwise(self._ticks[first:])]
        p20, p50, p80 = np.percentile(steps, [20, 50, 80])
        return {
            "seconds": sum(steps),
            "cpu_seconds": self._cpu_ticks[-1] - self._cpu_ticks[first],
            "thread_seconds": self._thread_ticks[-1] - self._thread_ticks[first],
            "step_seconds": [round(seconds, 4) for seconds in steps],
            "step_seconds_p20": round(float(p20), 4),
            "step_seconds_p50": round(float(p50), 4),
            "step_seconds_p80": round(float(p80), 4),
            "losses": [float(loss) for loss in self.losses],
            "peak_memory_gib": round(self._peak, 4),
            "peak_reserved_gib": round(self._reserved, 4) if self._on_gpu else None,
            "libraries_gib": round(self.libraries_gib, 4),
        }


def _status(name: str) -> float:
    """A size in this process's status, in GiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(name + ":"))
    return int(line.split()[1]) / 2**20
