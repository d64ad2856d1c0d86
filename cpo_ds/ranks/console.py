"""Prints any text on any console: control characters, and letters it lacks, appear as escapes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

CONSOLE = "standard output"  # the name of the file in errors of printing

# Characters that act on a terminal instead of appearing: C0 and C1 controls without tab and line
# feed, and marks that change the direction of the text around them.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    r"""Returns a text with its control characters written out, such as `\x1b` for an escape.

    Data from outside may hold them: names of directions, texts, answers of servers. Tabs, line
    breaks, and a carriage return at the beginning, with which progress bars go back, stay.
    """
    begin = "\r" if text.startswith("\r") else ""
    return begin + _ACTING.sub(lambda match: ascii(match[0])[1:-1], text[len(begin) :])


@contextlib.contextmanager
def plain_console(*, may_lose_text: bool = False) -> Iterator[None]:
    """Escapes everything that this process prints inside a `with` block.

    Letters that the console's encoding lacks are escaped too, instead of ending the program. The
    console may be a file on a full disk, or a program that ended. Then printing raises `OSError`,
    but with `may_lose_text` the text is lost and the program goes on.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (_Escaping(stream, may_lose_text) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            _empty(stream)


def _empty(stream: TextIO) -> None:
    """Writes what a stream still holds, or drops it: else Python would fail to do so at its end."""
    try:
        stream.flush()
    except OSError:
        to_nowhere(stream)


def to_nowhere(stream: TextIO) -> None:
    """Sends a stream to the null device, so that what it still holds can be flushed."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def print_colored(text: str) -> None:
    """Prints a text whose parts are escaped already, with the colors that it has."""
    stream: Any = sys.stdout
    while isinstance(stream, _Escaping):  # several, if a command calls another program's `main`
        stream = stream.console
    print(text, file=stream)


class _Escaping:
    """A stream of text, escaped on its way to the console."""

    def __init__(self, console: TextIO, may_lose_text: bool) -> None:
        self.console, self._may_lose_text = console, may_lose_text

    def write(self, text: str) -> int:
        with self._naming():
            self.console.write(escaped(text))
        return len(text)

    def flush(self) -> None:
        with self._naming():
            self.console.flush()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Names the console in an `OSError`, or drops the error if text may be lost."""
        try:
            yield
        except OSError as error:
            if not self._may_lose_text:
                raise OSError(error.errno, error.strerror, CONSOLE) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)
