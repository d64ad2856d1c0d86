"""The best time between two checkpoints, and the cost of failures, by Young's and Daly's formulas.

J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications of
the ACM 17 (1974). J. T. Daly, "A higher order estimate of the optimum checkpoint interval for
restart dumps", Future Generation Computer Systems 22 (2006).
"""

from __future__ import annotations

import math


def young_interval(save_seconds: float, failure_seconds: float) -> float:
    """Young's interval: seconds of training between two checkpoints, to first order.

    Training waits `save_seconds` for a checkpoint, and a failure comes each `failure_seconds` in
    the mean.
    """
    return math.sqrt(2 * save_seconds * failure_seconds)


def daly_interval(save_seconds: float, failure_seconds: float) -> float:
    """Daly's interval (his equation 37), which holds for long saves too."""
    ratio = save_seconds / (2 * failure_seconds)
    if ratio >= 1:
        return failure_seconds
    correction = 1 + math.sqrt(ratio) / 3 + ratio / 9
    return young_interval(save_seconds, failure_seconds) * correction - save_seconds


def expected_factor(
    interval: float, save_seconds: float, failure_seconds: float, restart_seconds: float
) -> float:
    """A run's expected time over that of one without failures and saves, as Daly has it.

    Failures come at random, independently of each other, and may hit a restart too.
    """
    growth = math.expm1((interval + save_seconds) / failure_seconds)
    return failure_seconds * math.exp(restart_seconds / failure_seconds) * growth / interval
