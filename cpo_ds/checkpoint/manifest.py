"""The manifest of a checkpoint: its files with sizes and checksums, and the run that saved it.

    checkpoints/step-00000020/   DeepSpeed's shards, a random state per rank, manifest.json

The manifest finds damage that came to the files after they were written. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpo_ds.ranks.liveness import count_work
from cpo_ds.storage.files import sync

MANIFEST = "manifest.json"
_FORMAT = 1
_CHUNK = 16 * 2**20  # bytes read at once for a checksum


class DamagedCheckpoint(Exception):
    """A checkpoint differs from its manifest; the message names the file."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a checkpoint as it was written."""

    bytes: int
    sha256: str
    rank: int = field(default=0, compare=False)  # that wrote it


@dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint and the files that it consists of."""

    step: int
    ranks: int
    zero_stage: int
    identity: dict[str, Any] = field(default_factory=dict)  # equal in every run that resumes it
    weights_before: str = ""  # fingerprint of the weights that training started from
    configuration: dict[str, Any] = field(default_factory=dict)  # the recipe
    deepspeed: dict[str, Any] = field(default_factory=dict)  # the content of the DeepSpeed file
    data: dict[str, Any] = field(default_factory=dict)  # pairs by direction, training and held out
    tokenizer: dict[str, str] = field(default_factory=dict)  # fingerprints, also of the template
    hosts: list[str] = field(default_factory=list)  # of the ranks, if each host keeps its own part
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.bytes for entry in self.files.values())


def random_state_name(rank: int) -> str:
    """The file name of a rank's random state."""
    return f"random_state_rank_{rank}.pt"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, which holds a checksum of itself, and waits until it is on disk."""
    content = asdict(manifest) | {"format": _FORMAT}
    content["checksum"] = _checksum(content)
    path = folder / MANIFEST
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    sync(path)


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint. Raises `DamagedCheckpoint` if it is not whole."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        if checksum != _checksum(content):
            raise DamagedCheckpoint(f"{path} was changed: its checksum does not fit")
        if content.pop("format") != _FORMAT:
            raise DamagedCheckpoint(f"{path} is of another version of cpo_ds")
        files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        return Manifest(**content, files=files)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is not there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from None


def _checksum(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_entry(path: Path) -> FileEntry:
    """Size and checksum of a file as it is now."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            count_work()
    return FileEntry(size, digest.hexdigest())


def damage(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> list[str]:
    """Damage to the named files, or to all, a line for each; reads every byte of them."""
    problems = []
    for name in manifest.files if names is None else names:
        path, entry = folder / name, manifest.files[name]
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                problems.append(f"{path} has {size} bytes instead of {entry.bytes}")
            elif read_entry(path) != entry:
                problems.append(f"{path} was changed: its checksum does not fit")
        except FileNotFoundError:
            problems.append(f"{path} is not there{_advice_to_copy(manifest, entry)}")
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}")
    return problems


def _advice_to_copy(manifest: Manifest, entry: FileEntry) -> str:
    """Names the host that has a missing file, if each host keeps its own part."""
    if not manifest.hosts:
        return ""
    return (
        f" (rank {entry.rank} wrote it to a disk of host {manifest.hosts[entry.rank]}; copy that "
        "host's folder of this step over this one)"
    )


def inspect(folder: Path) -> tuple[Manifest | None, list[str]]:
    """Verifies a checkpoint: its manifest, None if that is not whole, and all damage."""
    try:
        manifest = read_manifest(folder)
    except DamagedCheckpoint as error:
        return None, [str(error)]
    return manifest, damage(folder, manifest)
