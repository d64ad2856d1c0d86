"""A lock on a folder, so that two runs never write to it at the same time."""

from __future__ import annotations

import contextlib
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


class FolderLock:
    """A held lock. It ends with `close`, or with this process, even by a kill."""

    def __init__(self, file: IO[bytes], folder: int) -> None:
        self._file, self._folder = file, folder  # an open file, and the descriptor of a folder

    def close(self) -> None:
        """Gives the lock back. Does nothing if that is done already."""
        if not self._file.closed:
            self._file.close()
            os.close(self._folder)

    def __del__(self) -> None:
        self.close()


def hold_folder(folder: Path) -> FolderLock:
    """Locks a folder until the returned lock is closed.

    The folder itself is locked, and a file `lock` in it, which names the holder: somebody may
    remove the file while the lock is held, and some file systems lock files only. Raises
    `UserError` if another run holds either. On a file system without locks it locks nothing.
    """
    try:
        # Without a buffer, nothing is left to write when the lock is closed.
        file = (folder / "lock").open("ab", buffering=0)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"{folder}/lock, which keeps a second run out, cannot be written: {error.strerror}; "
            "correct its permissions, or choose another output_dir."
        ) from None

    lock = FolderLock(file, descriptor)

    # Try to get both locks for some seconds.
    deadline = time.monotonic() + _LOCK_SECONDS
    while not (_locked(descriptor) and _locked(file.fileno())):
        if time.monotonic() > deadline:
            raise UserError(
                f"another run is writing to {folder} ({_holder(folder)}); wait for it, stop it, or "
                "choose another place to write to."
            )
        time.sleep(0.2)

    # Leave this process's name for the message above.
    with contextlib.suppress(OSError):  # the disk is full; the lock holds nevertheless
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}".encode())
    return lock


def is_held(folder: Path) -> bool:
    """Whether another process holds a folder's lock at this moment."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # and let go at once
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(descriptor)
    return False


def _locked(descriptor: int) -> bool:
    """Locks an open file or folder; returns False if another process holds its lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error: the file system has no such locks.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _holder(folder: Path) -> str:
    """The name that the holder of a lock left."""
    with contextlib.suppress(OSError):
        if name := (folder / "lock").read_text(encoding="utf-8", errors="replace").strip():
            return name
    return "it left no name"
