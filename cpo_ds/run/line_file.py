"""A file of JSON lines that grows, and whose lines wait in memory while its disk is full."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpo_ds.storage.files import sync_descriptor

Warn = Callable[[str, OSError], None]  # (problem, error)


class LineFile:
    """Appends JSON lines to a file. A full disk is told to `warn`, and its lines wait in memory.

    The file appears with its first line.
    """

    def __init__(self, path: Path, warn: Warn) -> None:
        self.path, self._warn = path, warn
        self._file: int | None = None
        self._unwritten = b""

    def open(self) -> None:
        """Opens the file, or makes it. Raises `OSError`."""
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, *lines: dict[str, Any]) -> None:
        """Appends lines. Numbers that are not finite become null."""
        for line in lines:
            text = json.dumps(_without_infinities(line), ensure_ascii=False) + "\n"
            # Half of a surrogate pair, which UTF-8 has no form for, is written as JSON escapes it.
            self._unwritten += text.encode("utf-8", "backslashreplace")
        self.flush()

    def flush(self) -> None:
        """Writes as much as the disk takes. A full one may take a part of a line."""
        try:
            while self._unwritten:
                self.open()
                assert self._file is not None
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            self._warn(f"{self.path.name} cannot be written, its lines wait in memory", error)

    def sync(self) -> None:
        """Waits until the written lines are on disk."""
        self.flush()
        if self._file is None:
            return
        try:
            sync_descriptor(self._file)
        except OSError as error:
            self._warn(f"{self.path.name} may not be on disk", error)

    def close(self) -> int:
        """Closes the file; returns how many lines could not be written to their end."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
        lines, self._unwritten = self._unwritten.count(b"\n"), b""
        return lines


def _without_infinities(value: Any) -> Any:
    """The value with null for numbers that JSON cannot hold, NaN among them."""
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
