"""The processes of ranks: which, where, and whether they live."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class RankProcess:
    """The process of a rank."""

    rank: int
    host: str
    pid: int
    started: float  # in seconds since 1970: a pid may be used again

    def __str__(self) -> str:
        return f"rank {self.rank} on host {self.host} (process {self.pid})"


def is_running(place: RankProcess) -> bool:
    """Whether a process of this host lives; one that only waits to be noticed does not."""
    try:
        process = psutil.Process(place.pid)
        same = abs(process.create_time() - place.started) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def main_thread_at() -> str:
    """Where the main thread is, as `file.py:12 in function`, the innermost line of this package."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    lines = traceback.extract_stack(frame) if frame else []
    ours = [line for line in lines if "cpo_ds" in line.filename] or lines
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else "?"
