"""Writes what DeepSpeed saves: checksummed, synced to disk, errors kept, at once or in background.

DeepSpeed hands each file of a checkpoint to its `CheckpointEngine`; this is ours.
"""

from __future__ import annotations

import copy
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch.utils import _pytree

from cpo_ds.checkpoint.manifest import FileEntry
from cpo_ds.ranks.liveness import count_work


class CheckpointWriter(CheckpointEngine):
    """Writes this rank's files of a checkpoint.

    An error while writing is kept for `result` rather than raised: a rank that left DeepSpeed's
    `save_checkpoint` early would leave the others waiting in its barrier. `left_out` names frozen
    weights: of a tied one DeepSpeed leaves out only its first name.
    """

    def __init__(self, *, in_background: bool, left_out: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._left_out = left_out
        self._pool = ThreadPoolExecutor(max_workers=1) if in_background else None
        self._writes: list[Future[None]] = []
        self._files: dict[str, FileEntry] = {}
        self._error: str | None = None

    def save(self, state_dict: Any, path: str) -> None:
        """Writes a file; in background mode only its copy to host memory is made before return."""
        if self._left_out and "module" in state_dict:
            module = state_dict["module"].items()
            kept = {name: value for name, value in module if name not in self._left_out}
            state_dict = state_dict | {"module": kept}
        if self._pool is None:
            self._write(state_dict, Path(path))
        else:
            self._writes.append(self._pool.submit(self._write, _on_host(state_dict), Path(path)))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder, keeping the error as `save` does."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._keep(error, Path(path))

    def is_writing(self) -> bool:
        """Whether some files are not on disk yet."""
        return any(not write.done() for write in self._writes)

    def result(self) -> tuple[dict[str, FileEntry], str | None]:
        """Waits until all is on disk; what was written since the last call, and the first error."""
        for write in self._writes:
            write.result()
        files, error = self._files, self._error
        self._writes, self._files, self._error = [], {}, None
        return files, error

    def _write(self, state: Any, path: Path) -> None:
        if self._error is not None:
            return
        counted = None
        try:
            with path.open("wb") as file:
                counted = _HashingFile(file)
                torch.save(state, cast(IO[bytes], counted))
                file.flush()
                os.fsync(file.fileno())
            self._files[path.name] = FileEntry(counted.size, counted.digest.hexdigest())
        except OSError as error:
            self._keep(error, path)
        except RuntimeError:  # what torch makes of an error while it writes
            if counted is None or counted.error is None:
                raise
            self._keep(counted.error, path)

    def _keep(self, error: OSError, path: Path) -> None:
        if self._error is None:
            self._error = f"{path}: {error.strerror}"

    def load(self, path: str, map_location: Any = None) -> Any:
        """Reads a file that was verified before."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def create(self, info: Any) -> None:
        """Nothing to prepare."""

    def commit(self, info: Any) -> bool:
        """Nothing to do: a checkpoint counts when it is published (see `checkpoint.Saver`)."""
        return True


class _HashingFile:
    """A file that torch writes to, front to back, and whose checksum is taken on the way."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += written
        count_work()
        return written

    def flush(self) -> None:
        self._file.flush()


def _on_host(state: Any) -> Any:
    """A copy of nested values that training does not change any more, tensors in host memory."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.detach().to("cpu", copy=True)
        return copy.deepcopy(leaf)

    return _pytree.tree_map(copied, state)
