"""Signs that this process makes progress, for the watch over hung ranks.

A process is one rank of one run, so the counts are global to the module. This package counts its
own work as it does it. Libraries report nothing while they load, download, convert or write, so
their progress is measured from outside: by the bytes that the system counts for the process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cpo_ds.ranks.processes import main_thread_position, main_thread_waits

# Fewer bytes in a second are no progress. Rank 0 answers each rank's questions about the others by
# some hundred bytes a second, even if all ranks hang.
_LEAST_BYTES_A_SECOND = 2**16
_IO_COUNTERS = ("rchar", "wchar", "read_bytes", "write_bytes")


@dataclass
class _Counts:
    work: int = 0
    common_work: int = 0


_counts = _Counts()


def count_work() -> None:
    """Counts one piece of work that this rank has done, large or small."""
    _counts.work += 1


def count_common_work() -> None:
    """Counts one piece of work that every rank does; the rank with the fewest is behind."""
    _counts.work += 1
    _counts.common_work += 1


def work_done() -> int:
    """Pieces of work since this process started."""
    return _counts.work


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life, given every second."""

    time: float  # of a clock that nobody sets; changes with each beat
    work: int  # pieces of work done so far
    common_work: int  # pieces among them that every rank does
    waits: bool  # for other ranks
    position: str  # the line that its main thread is at


def own_beat() -> Beat:
    """A beat of this rank, made now."""
    waits, position = main_thread_waits(), main_thread_position()
    return Beat(time.monotonic(), _counts.work, _counts.common_work, waits, position)


def ranks_behind(beats: dict[int, Beat]) -> list[int]:
    """The ranks that hold up the others, judged by their last beats; none if all are alike.

    If some ranks wait for others, these are the ranks that do not wait. Otherwise these are the
    ranks that have done the least of the work that every rank does.
    """
    working = [rank for rank, beat in beats.items() if not beat.waits]
    least = min(beat.common_work for beat in beats.values())
    slowest = [rank for rank, beat in beats.items() if beat.common_work == least]
    behind = working if 0 < len(working) < len(beats) else slowest
    return behind if len(behind) < len(beats) else []


class ByteWatch:
    """Tells whether a process reads or writes: files that are loaded, downloaded or saved."""

    def __init__(self, pid: int | None = None) -> None:
        """Watches the process `pid` of this host, or this process if None."""
        self._file = Path(f"/proc/{pid or 'self'}/io")
        self._before = self._bytes()

    def has_moved(self, seconds: float) -> bool:
        """Whether bytes have moved since the last call, which was `seconds` ago."""
        before, self._before = self._before, self._bytes()
        return self._before - before >= seconds * _LEAST_BYTES_A_SECOND

    def _bytes(self) -> int:
        """Bytes that the process has read and written; 0 if the system does not count them.

        Pages of a memory-mapped file count when they are read from the disk.
        """
        try:
            lines = self._file.read_text().splitlines()
        except OSError:  # the process is gone, or the kernel was built without these counters
            return 0
        counters = dict(line.split(": ") for line in lines)
        return sum(int(counters[name]) for name in _IO_COUNTERS)
