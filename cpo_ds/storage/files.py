"""Files that appear whole or not at all, whatever ends the program meanwhile."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpo_ds.errors import UserError

_syncs: list[float] = []  # when each sync that is under way began, in any thread


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; on leaving the block, what is there takes the name `path`.

    What reads `path` meanwhile sees the old file or the new one. Makes the folder where it is
    missing; leaves nothing behind where the block raises. Raises `OSError`.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    new_folders = missing_folders(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        remove_empty(new_folders)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`replacing` for files that a user named: raises `UserError` if they cannot be written."""
    try:
        with replacing(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise cannot_be_written(path, error) from None


def cannot_be_written(path: Path, error: OSError) -> UserError:
    """The error to raise if a file or folder that a user named cannot be written."""
    return UserError(
        f"{path} cannot be written: {error.strerror or error}; make room, correct the permissions, "
        "or choose another place."
    )


def missing_folders(path: Path) -> list[Path]:
    """The folders above a path that do not exist, the innermost first."""
    return [folder for folder in path.parents if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, the innermost first, up to the first one that is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk.

    Raises `OSError`, with the name.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int) -> None:
    """Waits until an open file is on disk. Raises `OSError`."""
    started = time.monotonic()
    _syncs.append(started)
    try:
        os.fsync(descriptor)
    finally:
        _syncs.remove(started)


def sync_seconds() -> float | None:
    """How long this process has been waiting for the disk by `sync`; None if it is not waiting.

    No bytes of the process move meanwhile: the system writes what it took before.
    """
    started = min(list(_syncs), default=None)
    return None if started is None else time.monotonic() - started
