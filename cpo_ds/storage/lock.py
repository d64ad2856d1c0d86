"""A lock on a folder, so that two runs never write to it at the same time."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from cpo_ds.errors import UserError

# Processes of a run that was just killed may take a moment to be gone.
_LOCK_SECONDS = 10.0


def hold_folder(folder: Path) -> IO[str]:
    """Locks a run's folder until the returned file is closed or this process ends, however.

    Raises `UserError` where another run holds it. Where the file system has no locks, none is held.
    """
    try:
        lock = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}/lock, which keeps a second run out, cannot be written: {error.strerror}; "
            "mend its permissions, or choose another output_dir."
        ) from None
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return lock
        if time.monotonic() > deadline:
            lock.seek(0)
            who = lock.read().strip() or "it does not say which"
            raise UserError(
                f"another run is writing to {folder} ({who}); wait for it, stop it, or choose "
                "another place to write to."
            )
        time.sleep(0.2)
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on host {socket.gethostname()}")
        lock.flush()
    except OSError:  # a full disk: the lock holds all the same
        pass
    return lock
