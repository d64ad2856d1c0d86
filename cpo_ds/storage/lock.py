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

# Processes of a run that was just killed may hold its lock for another moment.
_LOCK_SECONDS = 10.0


def hold_folder(folder: Path) -> IO[str]:
    """Locks a folder until the returned file is closed or this process ends, even by a kill.

    Raises `UserError` if another run holds the lock. On a file system without locks it locks
    nothing.
    """
    try:
        lock = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}/lock, which keeps a second run out, cannot be written: {error.strerror}; "
            "correct its permissions, or choose another output_dir."
        ) from None

    # Try to get the lock for some seconds.
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return lock  # the file system has no locks
        if time.monotonic() > deadline:
            lock.seek(0)
            holder = lock.read().strip() or "it left no name"
            raise UserError(
                f"another run is writing to {folder} ({holder}); wait for it, stop it, or choose "
                "another place to write to."
            )
        time.sleep(0.2)

    # Leave this process's name for the message above.
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on host {socket.gethostname()}")
        lock.flush()
    except OSError:  # the disk is full; the lock holds nevertheless
        pass
    return lock
