"""Ways for a process to end: what a test of fresh processes runs; quick to import, as they do."""

import os
import signal

from cpo_ds.errors import UserError


def be_killed() -> None:
    """By kill -9, which is also what a system without memory does."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise UserError("put this right")
