"""The processes of ranks: which, where, and whether they live.

Linux tells of each process, in `/proc`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
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
    started: int  # in clock ticks since the host's start: a pid may be used again

    def __str__(self) -> str:
        return f"rank {self.rank} on host {self.host} (process {self.pid})"


def own_process(rank: int) -> RankProcess:
    """This process, as the others know it."""
    pid = os.getpid()
    _, started = _state_and_start(pid)
    return RankProcess(rank, socket.gethostname(), pid, started)


def is_running(place: RankProcess) -> bool:
    """Whether a process of this host lives; one that only waits to be noticed does not.

    It is known by its start in ticks, which stays what it was when somebody sets the clock.
    """
    try:
        state, started = _state_and_start(place.pid)
    except OSError:
        return False
    return started == place.started and state not in ("Z", "X")  # zombie, dead


def _state_and_start(pid: int) -> tuple[str, int]:
    """The state of a process, a letter, and its start in clock ticks. Raises `OSError` if none."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The second field is the program's name in parentheses, which may hold any character.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])  # fields 3 and 22 of proc(5)


def main_thread_at() -> str:
    """Where the main thread is, as `file.py:12 in function`, the innermost line of this package."""
    frames = _main_thread()
    own = [frame for frame in frames if _module(frame).startswith(_OWN_MODULES)] or frames
    if not own:
        return "?"
    code = own[0].f_code
    return f"{Path(code.co_filename).name}:{own[0].f_lineno} in {code.co_name}"


def main_thread_waits() -> bool:
    """Whether the main thread is inside a library that exchanges data between ranks.

    There a rank waits for the others, for as long as one of them does not come. On a GPU it may
    wait elsewhere, wherever it first needs a result.
    """
    frames = _main_thread()
    return bool(frames) and _module(frames[0]).startswith(_EXCHANGING_MODULES)


def _main_thread() -> list[FrameType]:
    """What the main thread is executing, the innermost call first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return [frame for frame, _ in traceback.walk_stack(frame)] if frame else []


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
