"""How far long work is, and how long it will take: a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS = 5.0  # between lines
SENTENCES = "  {done} of {total} sentences"


class Progress:
    """Counts what is done; `work` is what time is taken to be proportional to.

    On several ranks it counts the `own` things of one, which stand for the `total` of all. `line`
    says what things they are: `"kiwi: {done} of {total} translations scored"`.
    """

    def __init__(
        self, line: str, total: int, own: int, work: float, say: Callable[[str], None]
    ) -> None:
        self._line, self._total, self._own, self._work, self._say = line, total, own, work, say
        self.note = ""  # printed with the count
        self._done, self._work_done = 0, 0.0
        self._started = self._told = time.monotonic()

    def advance(self, count: int, work: float) -> None:
        """So many more are done."""
        self._done += count
        self._work_done += work
        self.tell()

    def tell(self) -> None:
        """Prints where it is, if it is time to."""
        now = time.monotonic()
        if now - self._told < _SECONDS:
            return
        self._told = now
        done = self._total * self._done // self._own
        text = self._line.format(done=done, total=self._total) + self.note
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
