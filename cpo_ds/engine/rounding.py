"""What rounding does to weights and moments that AdamW keeps in bfloat16 (`optim.states`)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from cpo_ds.config import OptimConfig

_DIGITS = 8  # binary digits of a bfloat16 number, the leading one included


def rounding_line(trained: Iterable[tuple[str, torch.Tensor]], optim: OptimConfig) -> str:
    """A line for the log: how many of the trained weights lose their updates in rounding.

    It is a warning if they are more than a half.
    """
    rate, second = optim.learning_rate, optim.betas[1]
    lost = lost_share(trained, rate)
    line = "warning: " if lost > 0.5 else ""
    line += (
        f"optimizer states are bfloat16: an update of optim.learning_rate, {rate:g}, is lost in "
        f"rounding for {lost:.1%} of the weights"
    )
    if 1 - second < 2**-_DIGITS:
        line += f", and with optim.betas[1], {second:g}, many second moments never fall"
    return f"{line} (docs/numerics.md)"


@torch.no_grad()
def lost_share(weights: Iterable[tuple[str, torch.Tensor]], update: float) -> float:
    """The share of bfloat16 weights that adding `update` leaves as they are."""
    # From 2^n to 2^(n+1) such numbers lie 2^(n+1-digits) apart; less than half of that is lost.
    smallest = 2.0 ** (math.floor(math.log2(update)) + 1 + _DIGITS)
    lost = total = 0
    for _, weight in weights:
        lost += int(torch.count_nonzero(weight.abs() >= smallest))
        total += weight.numel()
    return lost / total
