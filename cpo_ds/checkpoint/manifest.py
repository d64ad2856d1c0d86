"""Checkpoint folders on disk: named, listed in a manifest, verified, published, pruned. No torch.

    checkpoints/step-00000020/   DeepSpeed's shards, a random state per rank, manifest.json
    checkpoints/latest           the name of the newest whole one
    checkpoints/tmp-step-...     being written, or left by a run that was killed meanwhile

A folder gets its name only when every file in it is on disk, so a name is a promise; the manifest's
sizes and checksums find what happened to the files later.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpo_ds.ranks.liveness import count_work
from cpo_ds.storage.files import sync

MANIFEST = "manifest.json"
_FORMAT = 1
_CHUNK = 16 * 2**20
_NAME = re.compile(r"step-[0-9]{8,}")


class DamagedCheckpoint(Exception):
    """A checkpoint is not what its manifest says; the message names the file."""


@dataclass(frozen=True)
class FileEntry:
    """What a file held when it was written."""

    bytes: int
    sha256: str
    rank: int = field(default=0, compare=False)  # that wrote it


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, and the files that it consists of."""

    step: int
    ranks: int
    zero_stage: int
    identity: dict[str, Any] = field(default_factory=dict)  # what a run must share to go on from it
    weights_before: str = ""  # fingerprint of the weights that training started from
    configuration: dict[str, Any] = field(default_factory=dict)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # what its DeepSpeed file held
    data: dict[str, Any] = field(default_factory=dict)  # pairs by direction, training and held out
    hosts: list[str] = field(default_factory=list)  # of each rank, where each host keeps its part
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.bytes for entry in self.files.values())


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def unfinished_name(name: str) -> str:
    """Folder name of a checkpoint while it is written."""
    return f"tmp-{name}"


def replaced_name(name: str) -> str:
    """Name of a folder that another one of that name is about to replace."""
    return f"tmp-replaced-{name}"


def is_checkpoint_name(name: str) -> bool:
    """Whether a name is one that `checkpoint_name` gives."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> int:
    """The step of a checkpoint by its folder's name."""
    return int(name.removeprefix("step-"))


def random_state_name(rank: int) -> str:
    """File name of a rank's random state."""
    return f"random_state_rank_{rank}.pt"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, which holds a checksum of itself, and waits until it is on disk."""
    content = asdict(manifest) | {"format": _FORMAT}
    content["checksum"] = _checksum(content)
    path = folder / MANIFEST
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    sync(path)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint. Raises `DamagedCheckpoint` where it is not whole."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        said = content.pop("checksum")
        if said != _checksum(content):
            raise DamagedCheckpoint(f"{path} was changed: its checksum does not fit")
        if content.pop("format") != _FORMAT:
            raise DamagedCheckpoint(f"{path} is of another version of cpo_ds")
        files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        return Manifest(**content, files=files)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is not there") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from None


def _checksum(content: dict[str, Any]) -> str:
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
    """What is wrong with the named files (all), a line for each; reads every byte of them."""
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
            problems.append(f"{path} is not there{_kept_by(manifest, entry)}")
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}")
    return problems


def _kept_by(manifest: Manifest, entry: FileEntry) -> str:
    if not manifest.hosts:
        return ""
    return (
        f" (rank {entry.rank} wrote it to a disk of host {manifest.hosts[entry.rank]}; copy that "
        "host's folder of this step over this one)"
    )


def inspect(folder: Path) -> tuple[Manifest | None, list[str]]:
    """The manifest of a checkpoint, None where it is not whole, and all that is damaged."""
    try:
        manifest = read_manifest(folder)
    except DamagedCheckpoint as error:
        return None, [str(error)]
    return manifest, damage(folder, manifest)


def resume_candidates(folder: Path) -> list[Path]:
    """Checkpoints to resume from, the best first: the one that `latest` names, then older ones.

    One that is newer than `latest` is of a run that was since resumed from further back, or was
    never reported as saved. Where `latest` says nothing, all are candidates.
    """
    found = checkpoints(folder)[::-1]
    latest = _read_latest(folder)
    if latest is not None:
        found = [path for path in found if step_of(path.name) <= step_of(latest)] or found
    return found


def latest_problem(folder: Path) -> tuple[str, bool] | None:
    """What is wrong with `latest`, if anything, and whether no crash would leave it that way."""
    published = checkpoints(folder)
    path, latest = folder / "latest", _read_latest(folder)
    if not published:
        return None
    if not path.exists():
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


def checkpoints(folder: Path) -> list[Path]:
    """The published checkpoints in a folder, the oldest first."""
    found = [path for path in folder.glob("step-*") if is_checkpoint_name(path.name)]
    return sorted(found, key=lambda path: step_of(path.name))


def publish(unfinished: Path, final: Path) -> None:
    """Gives a checkpoint that is on disk its name, then points `latest` at it.

    What takes room on the disk comes first, so that a full one leaves nothing half published.
    """
    folder = final.parent
    pointer = folder / "latest.tmp"
    pointer.write_text(final.name, encoding="utf-8")
    sync(pointer)
    publish_folder(unfinished, final)
    pointer.replace(folder / "latest")
    sync(folder)


def publish_folder(unfinished: Path, final: Path) -> None:
    """Gives a folder whose files are on disk its name."""
    sync(unfinished)
    if final.exists():  # of a run that was since resumed from further back
        aside = final.with_name(replaced_name(final.name))
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    unfinished.rename(final)
    sync(final.parent)


def restore_replaced(folder: Path) -> None:
    """Gives a checkpoint its name back that a kill left without, just before it was replaced."""
    for aside in folder.glob(replaced_name("step-*")):
        final = folder / aside.name.removeprefix(replaced_name(""))
        if not final.exists():
            aside.rename(final)


def prune(folder: Path, newest: str, keep_last: int) -> None:
    """Removes what `newest`, just published, makes superfluous: older, left over and converted."""
    remove_unfinished(folder)  # first, since a name may be taken by what a crash left
    published = checkpoints(folder)
    kept = [p for p in published if step_of(p.name) <= step_of(newest)][-keep_last:]
    for path in published:
        if path not in kept:
            path.rename(folder / f"tmp-old-{path.name}")  # no name on what is half removed
    remove_unfinished(folder)
    for path in folder.glob("universal-*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what was never published, or is published no more."""
    for path in folder.glob("tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
