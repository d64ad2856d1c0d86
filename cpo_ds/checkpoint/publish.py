"""Checkpoint folders get their names when they are whole, are listed, replaced and pruned.

    checkpoints/step-00000020/   a published checkpoint
    checkpoints/latest           the name of the newest one
    checkpoints/tmp-step-...     being written, or left by a run that was killed meanwhile

A folder gets its name only when every file in it is on disk, so a name is a promise.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from pathlib import Path

from cpo_ds.storage.files import sync

_NAME = re.compile(r"step-[0-9]{8,}")


def checkpoint_name(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def unfinished_name(name: str) -> str:
    """The folder name of a checkpoint while it is written."""
    return f"tmp-{name}"


def replaced_name(name: str) -> str:
    """The name that a folder gets just before a new one takes its own."""
    return f"tmp-replaced-{name}"


def is_checkpoint_name(name: str) -> bool:
    """Whether a name is one that `checkpoint_name` gives."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """The step of a checkpoint, read from its folder's name."""
    return int(name.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints in a folder, the oldest first."""
    published = [path for path in folder.glob("step-*") if is_checkpoint_name(path.name)]
    return sorted(published, key=lambda path: step_of(path.name))


def resume_candidates(folder: Path) -> list[Path]:
    """Checkpoints to resume from, the best first: the one that `latest` names, then older ones.

    A checkpoint newer than `latest` belongs to a run that was since resumed from an older step, or
    was never reported as saved. If `latest` names none, all checkpoints are candidates.
    """
    candidates = checkpoints(folder)[::-1]
    latest = _read_latest(folder)
    if latest is not None:
        up_to_latest = [path for path in candidates if step_of(path.name) <= step_of(latest)]
        candidates = up_to_latest or candidates
    return candidates


def latest_problem(folder: Path) -> tuple[str, bool] | None:
    """The problem with the file `latest`, or None.

    With it comes whether the problem is damage: whether no crash could have left it that way.
    """
    published = checkpoints(folder)
    path, latest = folder / "latest", _read_latest(folder)
    if not published:
        return None
    if not path.exists():
        # A run killed in its first save leaves one checkpoint without `latest`.
        return f"{path} is not there", len(published) > 1
    if latest is None:
        return f"{path} names no checkpoint", True
    if folder / latest not in published:
        return f"{path} names {latest}, which is not there", True
    if latest != published[-1].name:
        return f"{path} names {latest} though {published[-1].name} is there", False
    return None


def _read_latest(folder: Path) -> str | None:
    try:
        latest = (folder / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return latest if is_checkpoint_name(latest) else None


def publish(unfinished: Path, final: Path) -> None:
    """Gives a checkpoint that is on disk its name, then points `latest` at it.

    The new `latest` takes room on the disk, so it is written first: a full disk leaves nothing half
    published.
    """
    folder = final.parent
    pointer = folder / "latest.tmp"
    pointer.write_text(final.name, encoding="utf-8")
    sync(pointer)
    publish_folder(unfinished, final)
    pointer.replace(folder / "latest")
    sync(folder)


def publish_folder(unfinished: Path, final: Path) -> None:
    """Gives a folder its name. Its files must be on disk already."""
    sync(unfinished)
    if final.exists():  # of a run that was since resumed from an older step
        aside = final.with_name(replaced_name(final.name))
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    unfinished.rename(final)
    sync(final.parent)


def restore_replaced(folder: Path) -> None:
    """Gives checkpoints their names back after a run was killed while it replaced them."""
    for aside in folder.glob(replaced_name("step-*")):
        final = folder / aside.name.removeprefix(replaced_name(""))
        if not final.exists():
            aside.rename(final)


class Hold:
    """Keeps a checkpoint from being pruned until it is closed, or until the process ends.

    On a file system without locks it keeps nothing. Raises `FileNotFoundError` if the checkpoint is
    gone.
    """

    _descriptor: int | None = None

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(path.stat(), os.fstat(self._descriptor)):
            raise FileNotFoundError(path)  # another one took its place before the lock

    def close(self) -> None:
        """Lets the checkpoint go. Does nothing if that is done already."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _withdraw(path: Path) -> None:
    """Takes a checkpoint's name away, unless a process keeps it by a `Hold`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Locked until it is renamed, so that a hold taken now finds it gone.
        with contextlib.suppress(OSError):  # the file system has no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        path.rename(path.with_name(f"tmp-old-{path.name}"))
    finally:
        os.close(descriptor)


def prune(folder: Path, newest: str, keep_last: int) -> None:
    """Removes all but `keep_last` checkpoints up to `newest`, which was just published.

    Checkpoints after `newest`, unfinished ones and converted ones are removed too. A checkpoint
    that a process holds stays until a later call.
    """
    remove_unfinished(folder)  # first, since a leftover may have a name that is needed below
    published = checkpoints(folder)
    kept = [p for p in published if step_of(p.name) <= step_of(newest)][-keep_last:]
    for path in published:
        if path not in kept:
            _withdraw(path)  # a folder that is half removed must not bear a checkpoint's name
    remove_unfinished(folder)
    for path in folder.glob("universal-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Removes folders that were never published or are published no more."""
    for path in folder.glob("tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
