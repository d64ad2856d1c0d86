"""When a checkpoint is due: after a number of steps, after a time, or whichever comes first."""

from __future__ import annotations

import time
from collections.abc import Callable

from cpo_ds.config import CheckpointConfig


class SaveInterval:
    """The time of training since this start or its last checkpoint, against the recipe's limits.

    `clock` gives seconds that never go back. The clocks of ranks differ a little, so rank 0's
    `is_over` counts for all of them.
    """

    def __init__(
        self,
        config: CheckpointConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = config.every_steps if config else None
        self._minutes = config.every_minutes if config else None
        self._clock = clock
        self._began = clock()

    def begin(self) -> None:
        """Begins a new interval: training goes on after a checkpoint, or after an attempt."""
        self._began = self._clock()

    @property
    def is_over(self) -> bool:
        """Whether this process's clock has gone on by `checkpoint.every_minutes`."""
        return self._minutes is not None and self._clock() - self._began >= 60 * self._minutes

    def ends_at(self, step: int) -> bool:
        """Whether `checkpoint.every_steps` asks for a checkpoint of this step."""
        return self._steps is not None and step % self._steps == 0
