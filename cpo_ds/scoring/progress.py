"""How far scoring is, and how long it will take: a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

_SECONDS = 5.0  # between lines


class Progress:
    """Counts this rank's batches, which stand for those of all ranks; `say` prints on rank 0."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._started = self._told = time.monotonic()
        self._world_size = 1
        self._missing = self._known = 0  # translations, of all ranks
        self._own_batches = self._own_done = self._translations = 0

    def expect(self, batches: Sequence[Sequence[object]], total: int, world_size: int) -> None:
        """`batches` of all ranks are to be scored, of `total` translations."""
        missing = sum(map(len, batches))
        self._world_size = world_size
        self._missing += missing
        self._known += total - missing
        self._own_batches += -(-len(batches) // world_size)

    def advance(self, translations: int) -> None:
        """A batch of this rank is done."""
        self._own_done += 1
        self._translations += translations * self._world_size
        now = time.monotonic()
        if now - self._told < _SECONDS:
            return
        self._told = now
        seconds = now - self._started
        left = seconds / self._own_done * max(0, self._own_batches - self._own_done)
        done = min(self._translations, self._missing)
        self._say(
            f"{self._name}: {done} of {self._missing} translations scored, "
            f"{done / seconds:.0f} a second, {_duration(left)} left"
        )

    def finish(self) -> None:
        """All ranks are done."""
        seconds = time.monotonic() - self._started
        rate = f", {self._missing / seconds:.0f} a second" if self._missing else ""
        before = f"; {self._known} were scored before" if self._known else ""
        self._say(
            f"{self._name}: {self._missing} translations scored in {_duration(seconds)}"
            f"{rate}{before}"
        )


def _duration(seconds: float) -> str:
    """`75.2` -> `"1 min 15 s"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
