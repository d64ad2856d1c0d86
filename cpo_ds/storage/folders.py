"""A folder of results that is written whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.storage.files import cannot_be_written


def check_replaceable(folder: Path, names: Collection[str], sign: str) -> None:
    """Raises `UserError` where `folder` is neither new nor empty nor what a command wrote before.

    That is told by what is in it: nothing but `names`, and the file `sign` among them.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder that is new or empty.")
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if name not in names]
    if others or (found and sign not in found):
        raise UserError(
            f"{folder} holds {(others or found)[0]}, which is not from this command; give a folder "
            "that is new, empty, or one that this command wrote."
        )


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder to write to; on leaving the block it takes the place of `folder`.

    Raises `UserError` where it cannot be written.
    """
    place = folder.resolve()
    unfinished = place.with_name(f".{place.name}.unfinished")
    old = place.with_name(f".{place.name}.old")
    try:
        for leftover in (unfinished, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        unfinished.mkdir(parents=True)
        yield unfinished
        if place.exists():
            place.rename(old)
        unfinished.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_be_written(folder, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
