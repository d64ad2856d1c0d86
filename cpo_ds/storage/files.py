"""Files that appear whole or not at all, whatever ends the program meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cpo_ds.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to; on leaving the block, what is there takes the name `path`.

    What reads `path` meanwhile sees the old file or the new one. Makes the folder where it is
    missing; leaves nothing behind where the block raises. Raises `OSError`.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


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


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
