"""The processes of ranks: their hosts and ids, whether they run, and the line they are at.

On Linux `/proc` answers for other processes.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_OWN_MODULES = ("cpo_ds.", "__main__")  # the latter is train.py, started as a script
_EXCHANGING_MODULES = ("torch.distributed", "deepspeed.")


@dataclass(frozen=True)
class RankProcess:
    """The process of a rank."""

    rank: int
    host: str
    pid: int
    started: int  # in clock ticks since the host's start; tells processes of one pid apart

    def __str__(self) -> str:
        return f"rank {self.rank} on host {self.host} (process {self.pid})"


def own_process(rank: int) -> RankProcess:
    """The process that calls this, as that of `rank`."""
    pid = os.getpid()
    return RankProcess(rank, socket.gethostname(), pid, int(_fields(pid)[_START]))


def is_running(process: RankProcess) -> bool:
    """Whether a process of this host runs; a zombie does not."""
    return is_alive(process.pid, process.started)


def wait_for_end(process: RankProcess, seconds: float) -> None:
    """Waits until a process of this host has ended, at most so long."""
    deadline = time.monotonic() + seconds
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.1)


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that started at `started` runs; a zombie does not.

    The start is compared in clock ticks, which stay the same if somebody sets the clock.
    """
    try:
        fields = _fields(pid)
    except OSError:
        return False
    return int(fields[_START]) == started and fields[_STATE] not in ("Z", "X")  # zombie, dead


def parent_and_start(pid: int) -> tuple[int, int]:
    """The parent of a process and its start in clock ticks. Raises `OSError` if there is none."""
    fields = _fields(pid)
    return int(fields[_PARENT]), int(fields[_START])


_STATE, _PARENT, _START = 0, 1, 19  # fields 3, 4 and 22 of proc(5)


def _fields(pid: int) -> list[str]:
    """A process's state and what follows in its `stat`. Raises `OSError` if there is none."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the program's name in parentheses, which may hold any character.
    return text.rpartition(")")[2].split()


def main_thread_position() -> str:
    """The line of this package that the main thread is at, as `file.py:12 in function`."""
    frames = _main_thread()
    own = [frame for frame in frames if _module(frame).startswith(_OWN_MODULES)] or frames
    if not own:
        return "?"
    code = own[0].f_code
    return f"{Path(code.co_filename).name}:{own[0].f_lineno} in {code.co_name}"


def main_thread_waits() -> bool:
    """Whether the main thread is inside a library that exchanges data between ranks.

    In such a library a rank waits until all ranks have called it. With a GPU a rank may wait
    outside of it too, at the first line that needs a result.
    """
    frames = _main_thread()
    return bool(frames) and _module(frames[0]).startswith(_EXCHANGING_MODULES)


def _main_thread() -> list[FrameType]:
    """The frames of the main thread, innermost call first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return [frame for frame, _ in traceback.walk_stack(frame)] if frame else []


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
