"""Writes the files of a checkpoint for DeepSpeed, with checksums, synced to disk.

DeepSpeed hands each file of a checkpoint to an object of its class `CheckpointEngine`. The one here
can write in the background, and keeps errors for later.
"""

from __future__ import annotations

import copy
import functools
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
from cpo_ds.storage.files import sync_descriptor


class CheckpointWriter(CheckpointEngine):
    """Writes this rank's files of a checkpoint.

    An error while writing is kept for `result`, not raised: a rank that left DeepSpeed's
    `save_checkpoint` early would leave the others waiting in a barrier. `left_out` names weights
    that are not saved. DeepSpeed can leave out frozen weights itself, but keeps the second name of
    a tied one.
    """

    def __init__(self, *, in_background: bool, left_out: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._left_out = left_out
        self._pool = ThreadPoolExecutor(max_workers=1) if in_background else None
        self._writes: list[Future[None]] = []
        self._files: dict[str, FileEntry] = {}
        self._error: str | None = None

    def save(self, state_dict: Any, path: str) -> None:
        """Writes a file. In background mode, only copies it to host memory before returning."""
        if self._left_out and "module" in state_dict:
            module = state_dict["module"].items()
            kept = {name: value for name, value in module if name not in self._left_out}
            state_dict = state_dict | {"module": kept}
        if self._pool is None:
            self._write(state_dict, Path(path))
        else:
            self._writes.append(self._pool.submit(self._write, _on_host(state_dict), Path(path)))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder. Like `save`, keeps an error for `result`."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._keep(error, Path(path))

    def is_writing(self) -> bool:
        """Whether files are left that are not on disk yet."""
        return any(not write.done() for write in self._writes)

    def result(self) -> tuple[dict[str, FileEntry], str | None]:
        """Waits until all files are on disk; returns their entries by name, and the first error.

        Only files since the last call count.
        """
        for write in self._writes:
            write.result()
        files, error = self._files, self._error
        self._writes, self._files, self._error = [], {}, None
        return files, error

    def _write(self, state: Any, path: Path) -> None:
        if self._error is not None:  # the checkpoint is lost: write no more of it
            return
        counted = None
        try:
            with path.open("wb") as file:
                counted = _HashingFile(file)
                torch.save(state, cast(IO[bytes], counted))
                file.flush()
                sync_descriptor(file.fileno())
            self._files[path.name] = FileEntry(counted.size, counted.digest.hexdigest())
        except OSError as error:
            self._keep(error, path)
        except RuntimeError:  # torch raises it for an OSError of the file that it writes to
            if counted is None or counted.error is None:
                raise
            self._keep(counted.error, path)

    def _keep(self, error: OSError, path: Path) -> None:
        if self._error is None:
            self._error = f"{path}: {error.strerror}"

    def load(self, path: str, map_location: Any = None) -> Any:
        """Reads a file, which was verified before: pickle runs code that the file holds."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def create(self, info: Any) -> None:
        """Does nothing: there is nothing to prepare."""

    def commit(self, info: Any) -> bool:
        """Does nothing: a checkpoint counts when `save.Saver` publishes it."""
        return True


class _HashingFile:
    """A file for torch to write to, front to back; it computes the checksum on the way."""

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
    """Copies nested values to host memory, so that training cannot change them."""
    tensors = [leaf for leaf in _pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    copied = _pytree.tree_map(_start_copy, state)
    # All copies from a GPU are under way before the first one is waited for.
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.synchronize()
    return copied


def _start_copy(leaf: Any) -> Any:
    """Copies a value to host memory; a copy from a GPU may still be under way afterwards."""
    if not isinstance(leaf, torch.Tensor):
        return copy.deepcopy(leaf)
    if not leaf.is_cuda:
        return leaf.detach().to("cpu", copy=True)
    return _pinned_like(leaf).copy_(leaf.detach(), non_blocking=True)


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    """Host memory for a copy, pinned, since the host would wait for each copy to other memory.

    torch keeps pinned memory that is not in use any more for the next checkpoint. A host that
    limits it still saves, but slower.
    """
    try:
        return torch.empty_like(tensor, device="cpu", pin_memory=True)
    except RuntimeError as error:
        _say_unpinned(str(error).splitlines()[0])
        return torch.empty_like(tensor, device="cpu")


@functools.cache
def _say_unpinned(reason: str) -> None:
    """Says why memory is not pinned, once for each reason."""
    print(f"warning: saving with memory that is not pinned: {reason}", flush=True)
