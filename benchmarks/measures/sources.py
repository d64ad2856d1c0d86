"""A digest of the sources that a measurement depends on, which needs no git and no library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

SOURCES = ("benchmarks", "cpo_ds", "ds_configs")
_WITHOUT = ("benchmarks/pages", "benchmarks/results")  # change no measurement
_SUFFIXES = (".py", ".json", ".yaml", ".cpp")


def source_digest(root: Path, folders: Sequence[str]) -> str:
    """A digest of the sources in these folders of a checkout."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix in _SUFFIXES and not name.startswith(_WITHOUT):
                digest.update(f"{name}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
