"""Measures the ceiling of utilization: this machine's speed at the model's products."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

_SECONDS = 0.2  # for each product; the fastest of its rounds counts
_CALLS_ON_GPU = 20  # of a round, so that launching does not count


def ceiling_tflops(
    shapes: list[tuple[int, int]], rows: int, head_rows: int, dtype: torch.dtype
) -> float:
    """Measures TFLOP/s of a forward and backward pass's matrix products alone, back to back.

    `shapes` are (inputs, outputs) of all layers, the head last; `rows` and `head_rows` the tokens
    that a micro-batch sends through them.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    counts = Counter([(*shape, rows) for shape in shapes[:-1]] + [(*shapes[-1], head_rows)])
    flops = seconds = 0.0
    for (inputs, outputs, tokens), count in counts.items():
        x = torch.randn(tokens, inputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        y = x @ weight.t()
        for left, right in ((x, weight.t()), (y, weight), (y.t(), x)):
            seconds += count * _fastest(partial(torch.mm, left, right), device)
            flops += count * 2 * tokens * inputs * outputs
    return flops / seconds / 1e12


def _fastest(product: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds of a call in the fastest of many rounds; a GPU is waited for once a round."""
    calls = _CALLS_ON_GPU if device.type == "cuda" else 1
    product()
    fastest, started = float("inf"), time.perf_counter()
    while (begin := time.perf_counter()) < started + _SECONDS:
        for _ in range(calls):
            product()
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, (time.perf_counter() - begin) / calls)
    return fastest
