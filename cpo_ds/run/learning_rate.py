"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from cpo_ds.config import OptimConfig


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The learning rate of optimizer step `step`, counted from 1 to `total_steps`.

    The curves are those of transformers' schedulers, shifted by one step: neither the first step of
    the warm-up nor the last step of a decay has a rate of zero.
    """
    warmup = math.ceil(optim.warmup_ratio * total_steps)
    if step <= warmup:
        return optim.learning_rate * step / warmup
    done = (step - warmup) / (total_steps - warmup + 1)  # share of the steps after the warm-up
    factor = {
        "constant": lambda: 1.0,
        "linear": lambda: 1.0 - done,
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * done)),
        "inverse_sqrt": lambda: _inverse_sqrt(step, warmup),
    }[optim.schedule]()
    return optim.learning_rate * factor


def _inverse_sqrt(step: int, warmup: int) -> float:
    """1 at the end of the warm-up, then the inverse square root of the step over the timescale."""
    timescale = warmup or 10_000  # transformers' default
    return 1.0 / math.sqrt((step + timescale - warmup) / timescale)
