"""Output of the ranks: rank 0 prints to the console, and every rank writes to a file of its own.

runs/x/logs/rank_0.txt    a copy of the console
runs/x/logs/rank_1.txt    the output of rank 1 and of the libraries in its process
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cpo_ds.ranks.console import escaped, to_nowhere

_HEAD = "--- rank"  # the first words of each start's part of a file
_TAIL_LINES = 20


def log_file(folder: Path, rank: int) -> Path:
    """The path of a rank's file in a run's folder."""
    return folder / "logs" / f"rank_{rank}.txt"


class RankLog:
    """The log file of this rank. From `open` to `close` only rank 0 prints to the console.

    `console` is standard error as it was before, for messages that must appear from any rank. If
    the file cannot be made, output goes to the console as before: a full disk should not silence a
    run.
    """

    def __init__(self, rank: int, folder: Path) -> None:
        self._rank, self._path = rank, log_file(folder, rank)
        self._file: TextIO | None = None
        self._console_streams: tuple[TextIO, TextIO] | None = None
        self._console_descriptors: tuple[int, int] | None = None  # of the other ranks
        self.console: TextIO = sys.stderr

    def open(self) -> None:
        """Starts to append to the file."""
        # Begin this start's part of the file.
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", buffering=1, encoding="utf-8", errors="replace")
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            process = f"on host {socket.gethostname()}, process {os.getpid()}"
            self._file.write(f"{_HEAD} {self._rank} {process}, {now}\n")
        except OSError:
            self._file = None
            return
        sys.stdout.flush()
        sys.stderr.flush()
        # Rank 0 writes to both. The others write to the file alone; replacing their descriptors
        # redirects libraries in other languages as well.
        self._console_streams = sys.stdout, sys.stderr
        if self._rank == 0:
            sys.stdout = _Both(sys.stdout, self._file)
            sys.stderr = _Both(sys.stderr, self._file)
        else:
            sys.stdout = sys.stderr = _FileAlone(self._file)
            self._console_descriptors = os.dup(1), os.dup(2)
            self.console = os.fdopen(os.dup(2), "w", buffering=1, errors="replace")
            os.dup2(self._file.fileno(), 1)
            os.dup2(self._file.fileno(), 2)

    def close(self) -> None:
        """Gives the console back to this rank.

        Not called after an error, which the ranks other than 0 would only print again.
        """
        if self._file is None:
            return
        if self._console_streams:
            sys.stdout, sys.stderr = self._console_streams
        if self._console_descriptors:
            for descriptor, console in zip((1, 2), self._console_descriptors, strict=True):
                os.dup2(console, descriptor)
                os.close(console)
        with contextlib.suppress(OSError):  # a full disk: what is left of the text is lost
            self._file.close()
        self._file = None


def last_words(folder: Path, rank: int) -> str:
    """The last lines that a rank wrote to its file since its last start; "" if there are none."""
    try:
        text = log_file(folder, rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    since_start = text.rpartition(_HEAD)[2].splitlines()[1:]
    return "\n".join(since_start[-_TAIL_LINES:]).strip()


class _FileAlone:
    """A stream of text that goes to a file. A full disk loses text, but raises no error."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        if "\r" not in text:  # progress bars go back to the start of their line
            with contextlib.suppress(OSError):
                self._file.write(escaped(text))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Both(_FileAlone):
    """A console whose text also goes to a file, except progress bars.

    A console that is gone, such as a pipe to a program that has ended, does not end the run.
    """

    def __init__(self, console: TextIO, file: TextIO) -> None:
        super().__init__(file)
        self._console = console

    def write(self, text: str) -> int:
        super().write(text)
        with self._maybe_gone():
            self._console.write(text)
        return len(text)

    def flush(self) -> None:
        with self._maybe_gone():
            self._console.flush()

    @contextlib.contextmanager
    def _maybe_gone(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # else Python would fail once more when it flushes it at the end
            with contextlib.suppress(OSError):
                to_nowhere(self._console)
        except OSError:  # a full disk, perhaps
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)
