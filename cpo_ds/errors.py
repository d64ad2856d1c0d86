"""Errors, the exit codes of programs, and helpers for messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

# Exit codes. Scripts and schedulers rely on them; docs/checkpoints.md lists them.
EXIT_USER_ERROR = 2
EXIT_NON_FINITE = 3
EXIT_STOPPED = 4
EXIT_RANK_LOST = 5


class UserError(Exception):
    """An error that the user can correct: a wrong setting, a bad row, a full disk.

    The message is one paragraph that names the problem, its location and the remedy. Programs print
    it without a stack trace and exit with `exit_code`.
    """

    exit_code = EXIT_USER_ERROR


class ProcessLost(UserError):
    """A process that a run needs is gone or never came. Another start may succeed.

    `scripts/supervise.sh` starts the run again after its exit code.
    """

    exit_code = EXIT_RANK_LOST


class EndedBySignal(ProcessLost):
    """A process that works for a run was ended by a signal."""


class NonFiniteError(Exception):
    """A loss or gradient was not finite. The weights are still those of the step before."""


class Stopped(Exception):
    """A run stopped on request, after saving a checkpoint. Starting it again resumes it."""


def one_line(error: Exception | str, limit: int = 300) -> str:
    """A library's message in one line of at most `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(name: str, known: Sequence[str], least_likeness: float = 0.5) -> str:
    """A hint for a message: the known name that is closest to `name`, or "" if none is close.

    `least_likeness` is the least similarity that counts as close, from 0 to 1, as `difflib`
    measures it.
    """
    matches = difflib.get_close_matches(name, known, n=1, cutoff=least_likeness)
    return f" (did you mean {matches[0]}?)" if matches else ""
