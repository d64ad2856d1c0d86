"""Keeps finished work through a kill: append-only files in one folder, one file per process.

Each finished batch is one line. A process that is killed loses only the batch that it was working
on. After a restart each process reads the files of all processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.storage.lock import FolderLock, hold_folder


def content_key(*contents: str | None) -> str:
    """A key of 32 hexadecimal digits that changes with any of the contents."""
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:32]


def cache_of(output: Path) -> Path:
    """The folder of finished work beside an output; it stays after the output is written."""
    return output.with_name(f"{output.name}.cache")


def hold_cache(folder: Path) -> FolderLock:
    """Makes a folder of finished work and locks it until the returned lock is closed.

    Raises `UserError` if the folder cannot be made, or if another process holds its lock.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}, which keeps finished work, cannot be made: {error.strerror}; make room, "
            "correct the permissions, or choose another --output."
        ) from None
    return hold_folder(folder)


class ResultFiles:
    """Finished results by key, in the files `name.rank.jsonl` of a folder.

    `name` identifies the computation; each process has a `rank` of its own. Processes on several
    hosts need a folder that all of them see.
    """

    def __init__(self, folder: Path, name: str, rank: int = 0) -> None:
        self._folder, self._name = folder, name
        self._file = folder / f"{name}.{rank}.jsonl"

    def read(self) -> dict[str, Any]:
        """Reads the results of all processes. Skips damaged lines, such as those a kill cut off."""
        results: dict[str, Any] = {}
        for file in sorted(self._folder.glob(f"{self._name}.*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    batch = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(batch, dict):
                    results |= batch
        return results

    def add(self, results: Mapping[str, Any]) -> None:
        """Appends a batch of results, all of them or none. Raises `UserError` if it cannot."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                # The line break first, so that a line that was cut off does not swallow this one.
                file.write(f"\n{json.dumps(dict(results))}\n".encode("ascii"))
        except OSError as error:
            raise UserError(
                f"{self._file} cannot be written: {error.strerror}; make room or correct the "
                "permissions, and give the same command again: finished work is kept."
            ) from None
