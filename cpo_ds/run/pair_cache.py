"""Keeps a recipe's tokenized pairs in a file that later starts, and all ranks, map into memory.

runs/x/pairs/KEY.arrow     pairs (see `data.pair_file`); KEY is a fingerprint of all that made them
runs/x/pairs/files.json    checksums of the data's files (see `data.identity`)

A file gets its name when it is whole and on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cpo_ds
from cpo_ds.config import Config
from cpo_ds.data.assemble import Say
from cpo_ds.data.identity import KnownFiles, identity_of
from cpo_ds.data.pair_file import FORMAT, Damaged, checksum_of, map_file, read_pairs
from cpo_ds.data.pair_inputs import Inputs
from cpo_ds.errors import UserError
from cpo_ds.model.positions import changing_ropes
from cpo_ds.run.pair_process import make_in_processes
from cpo_ds.run.pairs import made_once, tokenizer_state
from cpo_ds.storage.files import cannot_be_written, sync

FEW = 8  # pieces that are made at once, without other processes
_LIBRARIES = ("tokenizers", "transformers", "jinja2", "regex")  # by which texts become tokens
_OWN_FILES = 2  # kept in a run's own folder
_UNUSED_DAYS = 30  # after which files in a shared folder are removed
_UNFINISHED, _SUFFIX = ".unfinished-", ".arrow"


class Kept(NamedTuple):
    """Where the pairs are: in a file, or in memory if it cannot be written."""

    path: Path
    checksum: bytes
    data: bytes | None = None
    is_new: bool = True  # made by this start, which has printed the counts of reading


def cache_folder(config: Config) -> Path:
    """The folder of a recipe's tokenized pairs."""
    return Path(config.data.cache or Path(config.output_dir) / "pairs")


def keep_pairs(inputs: Inputs, say: Say) -> Kept:
    """Finds the pairs of an earlier start, or makes and keeps them.

    `say` prints what happens. Raises `UserError` for data that cannot be trained with, and if the
    disk has no room for many pairs.
    """
    folder = cache_folder(inputs.config)
    key = _key(inputs, folder)
    if key is not None:
        path = folder / f"{key}{_SUFFIX}"
        with contextlib.suppress(FileNotFoundError):
            kept = _read(path, inputs)
            prune(folder, path, is_shared=bool(inputs.config.data.cache))
            return kept
        if path.exists():
            say(f"{path} is damaged; the pairs are read and tokenized again")
    return _make(inputs, folder, key, say)


def _key(inputs: Inputs, folder: Path) -> str | None:
    """A fingerprint of rows, tokenizer and settings; None if some data is not there to read."""
    config, data, known = inputs.config, inputs.config.data, KnownFiles(folder)
    try:
        rows = [identity_of(data, known, path) for path in inputs.paths()]
    except (OSError, UserError):  # reading says it better
        return None
    known.keep()
    settings = data.model_dump(mode="json", exclude={"path", "eval_path", "cache", "selected_by"})
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    parts = {
        "format": FORMAT,
        "versions": versions | {"cpo_ds": cpo_ds.__version__},
        "rows": rows,
        "settings": settings,
        "scores": config.loss.needs_scores,
        "seed": config.train.seed if data.eval_fraction else None,
        "sharing": config.batch.share_prefix,
        "tokenizer": tokenizer_state(inputs.tokenizer),
        "stops": sorted(inputs.maker.encoder.stops),
        "rotary positions": changing_ropes(inputs.model_config),
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path, inputs: Inputs) -> Kept:
    """A file that is whole. Raises `FileNotFoundError` if there is none, or one that is damaged."""
    try:
        checksum = checksum_of(path)
        read_pairs(map_file(path), inputs.places())
    except (Damaged, OSError, ValueError, TypeError, KeyError) as error:
        raise FileNotFoundError(path) from error
    with contextlib.suppress(OSError):  # it is in use, and not changed
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
    return Kept(path, checksum, is_new=False)


def _make(inputs: Inputs, folder: Path, key: str | None, say: Say) -> Kept:
    """Reads and tokenizes the rows, and keeps the pairs. Raises `UserError`."""
    paths = [inputs.raw_pieces(path) for path in inputs.paths()]
    first = [list(islice(rows, FEW)) for rows in paths]
    if all(len(rows) < FEW for rows in first):
        pieces = [made_once(inputs.maker, iter(rows)) for rows in first]
        file = BytesIO()
        checksum, data = inputs.assemble(pieces, file, say), file.getvalue()
        try:
            with working(folder) as work:
                (work / "pairs").write_bytes(data)
                return _published(work / "pairs", folder, key, checksum, inputs)
        except OSError as error:
            say(f"warning: the pairs cannot be kept in {folder}: {error.strerror}.")
            return Kept(folder, checksum, data)
    # A mistake that all rows share is told at once.
    for rows in first[0]:
        inputs.maker.check(rows)
    try:
        with working(folder) as work:
            checksum = make_in_processes(inputs, work, say)
            return _published(work / "pairs", folder, key, checksum, inputs)
    except OSError as error:
        raise cannot_be_written(folder, error) from None


@contextlib.contextmanager
def working(folder: Path) -> Iterator[Path]:
    """Gives a new folder to work in, and removes it in the end. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _published(
    unfinished: Path, folder: Path, key: str | None, checksum: bytes, inputs: Inputs
) -> Kept:
    """Gives a file of pairs its name, and removes older ones. Raises `OSError`."""
    # Data that changed while it was read has no name by which a later start could find it.
    if key is None or key != _key(inputs, folder):
        key = unfinished.parent.name.removeprefix(_UNFINISHED)
    path = folder / f"{key}{_SUFFIX}"
    publish(unfinished, path)
    prune(folder, path, is_shared=bool(inputs.config.data.cache))
    return Kept(path, checksum)


def publish(unfinished: Path, path: Path) -> None:
    """Gives a file its name when it is on disk. Raises `OSError`."""
    sync(unfinished)
    unfinished.replace(path)
    sync(path.parent)


def prune(folder: Path, newest: Path, *, is_shared: bool) -> None:
    """Removes files that no run needs any more, and what killed starts left.

    A run's own folder keeps the pairs of its last two settings. In a folder that runs share,
    another run may use any file, so that those go which no start has used for a month.
    """
    now, day = time.time(), 24 * 3600
    with contextlib.suppress(OSError):
        states = {path: path.stat() for path in folder.iterdir() if path != newest}
        ages = {path: now - max(s.st_mtime, s.st_atime) for path, s in states.items()}
        files = sorted((path for path in ages if path.suffix == _SUFFIX), key=ages.__getitem__)
        left = [path for path in ages if path.name.startswith(_UNFINISHED)]
        if is_shared:
            files = [path for path in files if ages[path] > _UNUSED_DAYS * day]
            left = [path for path in left if ages[path] > day]
        else:
            files = files[_OWN_FILES - 1 :]
        for path in files:
            path.unlink()
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
