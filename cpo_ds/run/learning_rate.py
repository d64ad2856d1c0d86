"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from cpo_ds.config import OptimConfig


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 1 to `total_steps`.

    The shapes are those of transformers' schedulers, placed so that neither the first step of
    the warm-up nor the last step of a decay is spent on a rate of zero.
    """
    warmup = math.ceil(optim.warmup_ratio * total_steps)
    if step <= warmup:
        return optim.learning_rate * step / warmup
    done = (step - warmup) / (total_steps - warmup + 1)
    factor = {
        "constant": lambda: 1.0,
        "linear": lambda: 1.0 - done,
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * done)),
        "inverse_sqrt": lambda: _inverse_sqrt(step, warmup),
    }[optim.schedule]()
    return optim.learning_rate * factor


def _inverse_sqrt(step: int, warmup: int) -> float:
    """1 at the end of the warm-up, then 1 / sqrt; 10,000 is the timescale without a warm-up."""
    timescale = warmup or 10_000
    return 1.0 / math.sqrt((step + timescale - warmup) / timescale)
