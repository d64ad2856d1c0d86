"""Recognizes data that was read before: files by their contents, datasets by their fingerprints.

Contents are read again only if a file's size, times or inode differ from those of the last time.
They are kept in a file `files.json` of the folder of tokenized pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from cpo_ds.data.rows import SAMPLE, SAMPLE_LABEL
from cpo_ds.data.sources import data_files, is_saved_dataset, load_parts, local_path
from cpo_ds.ranks.liveness import count_work
from cpo_ds.settings.data import DataConfig

_NAME = "files.json"
_CHUNK = 2**22
_MOST = 10_000  # files to remember
# A file that was changed just before it was read may change again without another time.
_SETTLED_NS = 2_000_000_000


class KnownFiles:
    """Checksums of files by path, size, times and inode, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _NAME
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            known = {}
        self._known: dict[str, Any] = known if isinstance(known, dict) else {}
        self._is_changed = False

    def checksum(self, path: Path) -> str:
        """The SHA-256 of a file's contents. Raises `OSError`."""
        name, state = str(path.absolute()), _state(path)
        match self._known.get(name):
            case [*before, str(checksum)] if before == state and len(checksum) == 64:
                return checksum
        began = time.time_ns()
        checksum = _read_checksum(path)
        settled = max(state[1], state[2]) < began - _SETTLED_NS
        self._known.pop(name, None)
        if settled and _state(path) == state:
            self._known[name] = [*state, checksum]
        self._is_changed = True
        return checksum

    def keep(self) -> None:
        """Writes the checksums for the next start, unless they cannot be written."""
        if not self._is_changed:
            return
        latest = dict(list(self._known.items())[-_MOST:])
        unfinished = self._file.with_name(f".{_NAME}.{os.getpid()}")
        with contextlib.suppress(OSError):
            unfinished.write_text(json.dumps(latest), encoding="utf-8")
            unfinished.replace(self._file)
        with contextlib.suppress(OSError):
            unfinished.unlink()


def place_of(data: DataConfig, path: str | None = None) -> str:
    """The path of `data.path`, or of `path` if given, as the origins of its rows begin."""
    location = path or data.path
    if not location:
        return SAMPLE_LABEL
    return str(local_path(location) or location)


def identity_of(data: DataConfig, known: KnownFiles, path: str | None = None) -> list[Any]:
    """Values that change with the contents of `data.path`, or of `path`, and with nothing else.

    Raises `UserError` for a dataset that cannot be loaded, and `OSError`.
    """
    location = path or data.path
    local = local_path(location) if location else SAMPLE
    if local is None:
        parts = load_parts(str(location), data.split)
        return ["dataset", *((label, part._fingerprint) for label, part in parts)]
    if local.is_file():
        kind = "".join(local.suffixes[-2:]) if local.suffix == ".gz" else local.suffix
        return ["file", kind, known.checksum(local)]
    if is_saved_dataset(local):
        inside = sorted(file for file in local.rglob("*") if file.is_file())
        files = [(file.relative_to(local).as_posix(), file) for file in inside]
        return ["saved", data.split, *((name, known.checksum(file)) for name, file in files)]
    return ["folder", *((name, known.checksum(file)) for name, file in data_files(local))]


def _state(path: Path) -> list[int]:
    """Values that change when a file is written, moved or replaced. Raises `OSError`."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
            count_work()
    return digest.hexdigest()
