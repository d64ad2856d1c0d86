"""Signs that this process gets on, which the watch over hung ranks looks at.

A process is one rank of one run, so the counts are the module's own. Work that this package does
itself is counted where it is done. Libraries that load, download, convert or write say nothing
while they work; their bytes are seen from outside, in what the system counts for the process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cpo_ds.ranks.processes import main_thread_at, main_thread_waits

# Fewer bytes in a second do not count: rank 0 answers the other ranks' questions about each other
# by some hundred bytes a second for each of them, also while all hang.
_LEAST_BYTES_A_SECOND = 2**16
_IO_COUNTERS = ("rchar", "wchar", "read_bytes", "write_bytes")


@dataclass
class _Counts:
    work: int = 0
    common_work: int = 0


_counts = _Counts()


def count_work() -> None:
    """Counts a piece of work that this rank has done, large or small."""
    _counts.work += 1


def count_common_work() -> None:
    """Counts a piece of work that all ranks do alike: the rank with the fewest is behind."""
    _counts.work += 1
    _counts.common_work += 1


def work_done() -> int:
    """Pieces of work since this process started."""
    return _counts.work


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself every second."""

    time: float  # changes with each beat
    work: int  # pieces of work done
    common_work: int  # of those that all ranks do alike
    waits: bool  # for other ranks
    place: str  # where in the program its main thread is


def own_beat() -> Beat:
    """This rank's beat, now."""
    return Beat(
        time.time(), _counts.work, _counts.common_work, main_thread_waits(), main_thread_at()
    )


def ranks_behind(beats: dict[int, Beat]) -> list[int]:
    """The ranks that hold the others up, as far as their last beats tell; none if all are alike.

    While some wait for the others to come to the same place, these are the ones that do not. Else
    it is those that have done the least of the work that all do alike.
    """
    working = [rank for rank, beat in beats.items() if not beat.waits]
    least = min(beat.common_work for beat in beats.values())
    slowest = [rank for rank, beat in beats.items() if beat.common_work == least]
    behind = working if 0 < len(working) < len(beats) else slowest
    return behind if len(behind) < len(beats) else []


class ByteWatch:
    """Tells whether a process reads or writes: files that are loaded, downloaded, saved."""

    def __init__(self, pid: int | None = None) -> None:
        """Watches the process `pid` of this host, this one if None."""
        self._file = Path(f"/proc/{pid or 'self'}/io")
        self._before = self._bytes()

    def has_moved(self, seconds: float) -> bool:
        """Whether bytes have moved since the last call, which was `seconds` ago."""
        before, self._before = self._before, self._bytes()
        return self._before - before >= seconds * _LEAST_BYTES_A_SECOND

    def _bytes(self) -> int:
        """Bytes that the process's threads have read and written; 0 if the system does not say.

        Pages of a file that is mapped into memory count when they are read from the disk.
        """
        try:
            lines = self._file.read_text().splitlines()
        except OSError:  # the process is gone, or the kernel was built without these counters
            return 0
        counters = dict(line.split(": ") for line in lines)
        return sum(int(counters[name]) for name in _IO_COUNTERS)
