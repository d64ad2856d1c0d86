"""Where a run is heading, by its logged steps: the time left, and a loss that rises."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

RECENT = 50  # logged steps whose times tell the time left
_START, _LAST = 5, 12  # logged steps


def time_left(step_seconds: Sequence[float], steps: int) -> float:
    """Seconds that `steps` more steps take, by the times of some steps.

    The quickest and the slowest quarter do not count, so that neither a first step that compiles
    nor a step beside another program makes the estimate jump.
    """
    ordered = sorted(step_seconds)
    quarter = len(ordered) // 4
    return steps * fmean(ordered[quarter : len(ordered) - quarter])


def clock(seconds: float) -> str:
    """Seconds as hours:minutes:seconds, to 5 seconds, or to a minute from ten minutes on."""
    unit = 60 if seconds >= 600 else 5
    minutes, rest = divmod(round(seconds / unit) * unit, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def start_of_rise(losses: Sequence[float]) -> float | None:
    """The loss at the start of a run whose loss has risen far above it; None for any other run.

    Each of the last 12 losses must be more than twice the median of the first 5, and more than 1
    above it. The losses of single pairs are rarely that high so often in a row.
    """
    if len(losses) < _START + _LAST:
        return None
    start = median(losses[:_START])
    return start if min(losses[-_LAST:]) > start + max(abs(start), 1.0) else None


def rise_warning(losses: Sequence[float], learning_rate: float) -> str | None:
    """A line that says how far the loss has risen and what to do; None if it has not."""
    start = start_of_rise(losses)
    if start is None:
        return None
    return (
        f"warning: the loss has risen from {start:.2f} at the start to "
        f"{median(losses[-_LAST:]):.2f}. Stop the run and start it again with a lower "
        f"optim.learning_rate (now {learning_rate:.2g}; try a third of it), or with a higher "
        "optim.warmup_ratio."
    )
