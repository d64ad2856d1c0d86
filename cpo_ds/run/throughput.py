"""Throughput and memory of this process: a stopwatch of steps, the device's peak, memory used."""

from __future__ import annotations

import resource
import sys
import time

import torch

from cpo_ds.devices import Device, find_device
from cpo_ds.schema import StepTotals


def peak_memory_gib(device: torch.device) -> float:
    """The most memory used so far: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def peak_tflops(device: torch.device) -> float | None:
    """TFLOP/s of the device in bfloat16 by its data sheet, None for a device without an entry."""
    known = known_gpu(device)
    return known.peak_bf16_tflops if known else None


def known_gpu(device: torch.device) -> Device | None:
    """The data sheet of a GPU; None for a CPU, and for a GPU without an entry."""
    if device.type != "cuda":
        return None
    memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return find_device(torch.cuda.get_device_name(device), memory_gib)


class Stopwatch:
    """Measures throughput between two logged steps."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._steps = self._pairs = self._tokens = 0
        self._flops = 0.0

    def count(self, totals: StepTotals, flops: float) -> None:
        """Counts one step."""
        self._steps += 1
        self._pairs += totals.pairs
        self._tokens += totals.unique_tokens
        self._flops += flops

    def read(self, world_size: int, peak: float | None) -> dict[str, float | None]:
        """Returns rates since the last reading and starts anew.

        `model_tflops` is the mean over all ranks. `mfu` is its share of `peak`, None without one.
        """
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        tflops = self._flops / seconds / world_size / 1e12
        rates = {
            "step_seconds": seconds / max(1, self._steps),
            "pairs_per_second": self._pairs / seconds,
            "tokens_per_second": self._tokens / seconds,
            "model_tflops": tflops,
            "mfu": None if peak is None else tflops / peak,
        }
        self._start, self._steps, self._pairs, self._tokens, self._flops = now, 0, 0, 0, 0.0
        return rates

    def pause(self) -> float:
        """Starts time that does not count (evaluation, saving). Pass the result to `go_on`."""
        return time.perf_counter()

    def go_on(self, paused_at: float) -> None:
        """Leaves the time since `pause` out of the next reading."""
        self._start += time.perf_counter() - paused_at
