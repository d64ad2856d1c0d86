"""Where ranks speak: rank 0 on the console, and each rank in a file of its own.

runs/x/logs/rank_0.txt    what the console shows
runs/x/logs/rank_1.txt    what rank 1 and the libraries in its process say
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

_HEAD = "--- rank"  # begins each start's part of a file
_TAIL_LINES = 20


def log_file(folder: Path, rank: int) -> Path:
    """A rank's file in a run's folder."""
    return folder / "logs" / f"rank_{rank}.txt"


class RankLog:
    """This rank's file. From `open` to `close` ranks other than 0 are silent on the console.

    `console` is what standard error was before, for what has to be said there whoever says it.
    Where the file cannot be made, all goes on as before: a full disk should not silence a run.
    """

    def __init__(self, rank: int, folder: Path) -> None:
        self._rank, self._path = rank, log_file(folder, rank)
        self._file: TextIO | None = None
        self._before: list[Any] = []
        self.console: TextIO = sys.stderr

    def open(self) -> None:
        """Begins to write to the file, after what is in it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", buffering=1, encoding="utf-8", errors="replace")
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            where = f"on host {socket.gethostname()}, process {os.getpid()}"
            self._file.write(f"{_HEAD} {self._rank} {where}, {now}\n")
        except OSError:
            self._file = None
            return
        sys.stdout.flush()
        sys.stderr.flush()
        if self._rank == 0:
            self._before = [sys.stdout, sys.stderr]
            sys.stdout = _Both(sys.stdout, self._file)
            sys.stderr = _Both(sys.stderr, self._file)
        else:  # with all that libraries print past Python
            self._before = [os.dup(1), os.dup(2)]
            self.console = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
            os.dup2(self._file.fileno(), 1)
            os.dup2(self._file.fileno(), 2)

    def close(self) -> None:
        """Gives the console back. After an error it stays away from ranks that repeat it."""
        if self._file is None:
            return
        if self._rank == 0:
            sys.stdout, sys.stderr = self._before
        else:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, before in zip((1, 2), self._before, strict=True):
                os.dup2(before, descriptor)
                os.close(before)
        self._file.close()
        self._file = None


def last_words(folder: Path, rank: int) -> str:
    """The end of what a rank left in its file since its start; "" where that is nothing."""
    try:
        text = log_file(folder, rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    since_start = text.rpartition(_HEAD)[2].splitlines()[1:]
    return "\n".join(since_start[-_TAIL_LINES:]).strip()


class _Both:
    """A console that also writes what it shows to a file, but for progress bars."""

    def __init__(self, console: TextIO, file: TextIO) -> None:
        self._console, self._file = console, file

    def write(self, text: str) -> int:
        if "\r" not in text:
            with contextlib.suppress(OSError):
                self._file.write(text)
        return self._console.write(text)

    def flush(self) -> None:
        self._console.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)
