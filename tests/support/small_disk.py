"""A disk of a few MiB, mounted for a test."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOM = 16  # MiB that are enough for a run of `runs.small_recipe`; a checkpoint takes 1.7


class Disk:
    """A mounted tmpfs; only root may mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")

    def remount(self, *options: str) -> None:
        subprocess.run(
            ["mount", "-o", ",".join(["remount", *options]), str(self.folder)], check=True
        )

    def fill(self) -> None:
        """Takes all the room that is left, to the byte."""
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """Mounts a tmpfs of `ROOM` MiB at a new folder, and unmounts it in the end."""
    folder.mkdir()
    disk = Disk(folder)
    disk.mount(f"size={ROOM}m")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
