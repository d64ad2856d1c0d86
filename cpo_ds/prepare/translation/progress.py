"""How far a translation is, and how long it will take: a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS = 5.0  # between lines


class Progress:
    """Counts sentences; `work` is what time is taken to be proportional to.

    On several ranks it counts those of one, which stand for the `sentences` of all.
    """

    def __init__(self, sentences: int, own: int, work: float, say: Callable[[str], None]) -> None:
        self._sentences, self._own, self._work, self._say = sentences, own, work, say
        self.note = ""  # printed with the count
        self._done, self._work_done = 0, 0.0
        self._started = self._told = time.monotonic()

    def advance(self, sentences: int, work: float) -> None:
        """So many more are done."""
        self._done += sentences
        self._work_done += work
        self.tell()

    def tell(self) -> None:
        """Prints where it is, if it is time to."""
        now = time.monotonic()
        if now - self._told < _SECONDS:
            return
        self._told = now
        done = self._sentences * self._done // self._own
        text = f"  {done} of {self._sentences} sentences{self.note}"
        if self._work_done:
            left = (now - self._started) * (self._work / self._work_done - 1)
            text += f", {duration(left)} left"
        self._say(text)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started


def duration(seconds: float) -> str:
    """`75.2` -> `"1 min 15 s"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
