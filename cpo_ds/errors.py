"""Errors that people can put right, the exit codes of programs, and words for messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """Something that the person who runs the program can put right.

    The message is one paragraph: what is wrong, where, and what to do. Programs print it without
    a stack trace and exit with `EXIT_USER_ERROR`.
    """


class NonFiniteError(Exception):
    """A loss or gradient was not finite; the weights are those of the step before."""


class Stopped(Exception):
    """A run stopped because it was asked to, and goes on when it is started again."""


EXIT_USER_ERROR = 2
EXIT_NON_FINITE = 3
EXIT_STOPPED = 4
EXIT_RANK_LOST = 5


def one_line(error: Exception | str, limit: int = 300) -> str:
    """A library's message in one line, cut where it goes on and on."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(name: str, known: Sequence[str], least_likeness: float = 0.5) -> str:
    """For a message: the known name that is closest to an unknown one; "" if none is close.

    `least_likeness` is of two names, from 0 to 1, as `difflib` measures it.
    """
    matches = difflib.get_close_matches(name, known, n=1, cutoff=least_likeness)
    return f" (did you mean {matches[0]}?)" if matches else ""
