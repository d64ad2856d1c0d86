"""Finished work that survives a kill: append-only files in one folder, a file for each process.

What is worth keeping is added a batch at a time, each batch one line, so a process that is killed
loses the batch that it was at and no more. Who starts again reads the parts of all processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.storage.lock import hold_folder


def content_key(*contents: str | None) -> str:
    """32 hexadecimal digits that change with any of the contents."""
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:32]


def cache_of(output: Path) -> Path:
    """The folder beside an output that holds what is finished, until it is written and after."""
    return output.with_name(f"{output.name}.cache")


def hold_cache(folder: Path) -> Any:
    """Makes such a folder and keeps others out of it until the returned file is closed.

    Raises `UserError` where it cannot be made, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error.strerror}; it keeps what is finished. Make room, "
            "mend the permissions, or choose another --output."
        ) from None
    return hold_folder(folder)


class Parts:
    """Results by key. `name` is what they are results of; processes have different `rank`s.

    Processes on several hosts need a folder that all of them see.
    """

    def __init__(self, folder: Path, name: str, rank: int = 0) -> None:
        self._folder, self._name = folder, name
        self._file = folder / f"{name}.{rank}.jsonl"

    def read(self) -> dict[str, Any]:
        """Every result there is, of all processes. A line that a kill cut off does not count."""
        found: dict[str, Any] = {}
        for file in sorted(self._folder.glob(f"{self._name}.*.jsonl")):
            for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    found |= json.loads(line)
                except ValueError:
                    continue
        return found

    def add(self, results: Mapping[str, Any]) -> None:
        """Keeps a batch of results, all of them or none. Raises `UserError` where it cannot."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                # A line that was cut off must not swallow this one; blank lines do no harm.
                file.write(f"\n{json.dumps(dict(results))}\n".encode("ascii"))
        except OSError as error:
            raise UserError(
                f"{self._file} cannot be written: {error.strerror}; make room or mend the "
                "permissions, and give the same command again: what is finished is kept."
            ) from None
