"""Writes a folder of results whole or not at all."""

from __future__ import annotations

import contextlib
import os.path
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.storage.files import cannot_be_written, missing_folders, remove_empty


def check_replaceable(folder: Path, names: Collection[str], sign: str) -> None:
    """Raises `UserError` unless `folder` is new, empty, or from an earlier run of the command.

    A folder is from the command if it holds no file but `names`, and the file `sign` among them.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder that is new or empty.")
    present = sorted(path.name for path in folder.iterdir())
    others = [name for name in present if name not in names]
    if others or (present and sign not in present):
        raise UserError(
            f"{folder} holds {(others or present)[0]}, which is not from this command; give a "
            "folder that is new, empty, or one that this command wrote."
        )


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder to write to; on leaving the block it replaces `folder`.

    Leaves nothing behind if the block raises. Raises `UserError` if a folder cannot be written.
    """
    final = Path(os.path.realpath(folder))
    new_folders = missing_folders(final)
    unfinished = final.with_name(f".{final.name}.unfinished")
    old = final.with_name(f".{final.name}.old")
    try:
        for leftover in (unfinished, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        unfinished.mkdir(parents=True)
        yield unfinished
        if final.exists():
            final.rename(old)
        unfinished.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        remove_empty(new_folders)
