"""Prints any text on any console: control characters, and letters it lacks, appear as escapes."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

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
def plain_console() -> Iterator[None]:
    """Escapes everything that this process prints inside a `with` block.

    Letters that the console's encoding lacks are escaped too, instead of ending the program.
    """
    streams = sys.stdout, sys.stderr
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (_Escaping(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def print_colored(text: str) -> None:
    """Prints a text whose parts are escaped already, with the colors that it has."""
    stream = sys.stdout
    print(text, file=stream.console if isinstance(stream, _Escaping) else stream)


class _Escaping:
    """A stream of text, escaped on its way to the console."""

    def __init__(self, console: TextIO) -> None:
        self.console = console

    def write(self, text: str) -> int:
        self.console.write(escaped(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)
