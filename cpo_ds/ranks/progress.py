"""Progress of long work: every few seconds a line with the share done and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

_SECONDS = 5.0  # between lines
SENTENCES = "  {done} of {total} sentences"


class Progress:
    """Counts finished items and prints lines like `"kiwi: 512 of 4000 translations scored"`.

    `line` is the text, with `{done}` and `{total}`. `total` items are spread over all ranks; `own`
    are this rank's, which finish at about the rate of the others. `work` is a measure of the own
    items' cost to which their time is proportional.
    """

    def __init__(
        self, line: str, total: int, own: int, work: float, say: Callable[[str], None]
    ) -> None:
        self._line, self._total, self._own, self._work, self._say = line, total, own, work, say
        self.note = ""  # printed after the count
        self._done, self._work_done = 0, 0.0
        self._started = self._printed = time.monotonic()

    def advance(self, count: int, work: float) -> None:
        """Counts `count` more finished items, which cost `work`."""
        self._done += count
        self._work_done += work
        self.report()

    def report(self) -> None:
        """Prints a line if the last one is some seconds old."""
        now = time.monotonic()
        if now - self._printed < _SECONDS:
            return
        self._printed = now
        done = self._total * self._done // self._own
        text = self._line.format(done=done, total=self._total) + self.note
        if self._work_done:
            left = (now - self._started) * (self._work / self._work_done - 1)
            text += f", {duration(left)} left"
        self._say(text)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started


def duration(seconds: float) -> str:
    """`75.2` -> `"1 min 15 s"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
