"""Saves checkpoints: all ranks write their parts, and rank 0 publishes the whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cpo_ds.checkpoint.manifest import FileEntry, Manifest, random_state_name, write_manifest
from cpo_ds.checkpoint.publish import (
    checkpoint_name,
    prune,
    publish,
    remove_unfinished,
    restore_replaced,
    unfinished_name,
)
from cpo_ds.checkpoint.resume import Say
from cpo_ds.checkpoint.writer import CheckpointWriter
from cpo_ds.config import Config
from cpo_ds.engine.engine import Engine
from cpo_ds.errors import UserError
from cpo_ds.ranks.ranks import Ranks


class Saver:
    """Saves a run's checkpoints, one at a time. All ranks call the same methods in the same order.

    With `checkpoint.in_background`, `save` returns when the state is copied to host memory, and
    `finish` waits for every rank's files and publishes the checkpoint. `manifest` is the part of
    the manifest that all checkpoints of the run share.
    """

    def __init__(
        self, engine: Engine, ranks: Ranks, config: Config, manifest: Manifest, say: Say
    ) -> None:
        self._engine, self._ranks, self._config, self._say = engine, ranks, config, say
        self._manifest = manifest
        self._folder = Path(config.output_dir) / "checkpoints"
        # All hosts share a folder, or each host has one on its own disk.
        self._is_local = bool(manifest.hosts)
        self._in_folders = ranks.per_folder(is_local=self._is_local)
        self._writer = CheckpointWriter(
            in_background=config.checkpoint.in_background,
            left_out=_frozen_names(engine) if config.trains_adapter else frozenset(),
        )
        self._pending: int | None = None  # the step that is being saved
        self._started = 0.0
        self._failed = False
        self.last_saved: int | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint is not published yet; equal on all ranks."""
        return self._pending is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank's part of a checkpoint is not on disk yet."""
        return self._writer.is_writing()

    def save(self, step: int) -> None:
        """Saves the checkpoint of a step, and first finishes the one before.

        A failure is printed, or raised as `UserError` if the recipe's on_save_error is stop.
        """
        self.finish()
        # Make the folder. Each part of a checkpoint needs it.
        self._started = time.perf_counter()
        unfinished = self._folder / unfinished_name(checkpoint_name(step))
        problem = self._attempt(lambda: _empty_folder(unfinished))
        self._pending = step
        # Write this rank's parts: weights and optimizer, then its random state.
        if problem is None:
            self._engine.save_shards(
                unfinished, self._writer, without_frozen=self._config.trains_adapter
            )
            random_states = {"cpu": torch.get_rng_state()}
            if self._ranks.device.type == "cuda":
                random_states["cuda"] = torch.cuda.get_rng_state(self._ranks.device)
            self._writer.save(random_states, str(unfinished / random_state_name(self._ranks.rank)))
        # Publish now, unless the parts are still being written in the background.
        if problem is not None or not self._config.checkpoint.in_background:
            self.finish(problem)

    def finish(self, problem: str | None = None) -> None:
        """Waits until all ranks' parts are on disk, then publishes the pending checkpoint, if any.

        `problem` is a failure that all ranks know of already.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        # Collect the files that each rank wrote, and errors.
        parts = self._ranks.gather(self._writer.result())
        written = [
            {name: replace(entry, rank=rank) for name, entry in files.items()}
            for rank, (files, _) in enumerate(parts)
        ]
        errors = [problem, *(error for _, error in parts)]
        failed = next((error for error in errors if error is not None), None)
        # Publish, or give up at the first error.
        for action in (self._complete, self._publish):
            if failed is None:
                failed = self._attempt(partial(action, step, written))
        if failed is not None:
            self._give_up(step, failed)
            return
        # Report, and prune.
        self.last_saved = step
        seconds = time.perf_counter() - self._started
        size = sum(entry.bytes for files in written for entry in files.values())
        folder = self._folder / checkpoint_name(step)
        self._say(f"saved {folder} ({_size(size)}, {seconds:.1f} s)")
        self._in_folders(lambda: self._prune(step))  # once all hosts have the new one

    def _attempt(self, action: Callable[[], None]) -> str | None:
        """Runs `action` on the folder, or on each host's; returns the first error, or None."""
        problem = self._in_folders(lambda: _attempt(action))
        return next((problem for problem in self._ranks.gather(problem) if problem), None)

    def _give_up(self, step: int, problem: str) -> None:
        """Removes an unfinished checkpoint. Prints a warning, or raises `UserError` to stop."""
        self._failed = True
        unfinished = self._folder / unfinished_name(checkpoint_name(step))
        self._in_folders(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        self._in_folders(lambda: restore_replaced(self._folder))
        message = (
            f"the checkpoint of step {step} could not be saved: {problem}. Its files were "
            "removed, older checkpoints were not touched"
        )
        if self._config.checkpoint.on_save_error == "stop":
            raise UserError(
                f"{message}. Make room, or repair the folder, and run the same command again."
            )
        self._say(f"warning: {message}. The run goes on without it; make room before the next one.")

    def check_last(self, step: int) -> None:
        """Raises `UserError` if saving the run's last step failed."""
        if self._failed and self.last_saved != step:
            raise UserError(
                f"the run is complete, but its last checkpoint, of step {step}, could not be saved "
                "(see above)."
            )

    def _complete(self, step: int, written: list[dict[str, FileEntry]]) -> None:
        """Adds the manifest to an unfinished checkpoint; `written` lists files by rank.

        If each host has its own folder, every manifest lists the files of all hosts, so that the
        folders copied over each other are whole. If hosts wrote files of the same name, this host's
        entry wins. Raises `OSError` if a file is missing.
        """
        unfinished = self._folder / unfinished_name(checkpoint_name(step))
        ranks = self._ranks.on_this_host if self._is_local else range(self._ranks.world_size)
        ours = {name: entry for rank in ranks for name, entry in written[rank].items()}
        lost = next((name for name in ours if not (unfinished / name).exists()), None)
        if lost is not None:
            problem = (
                f"{lost} was written on another host and is missing on this one; output_dir must "
                "be on a file system that all hosts share, or the DeepSpeed file must set "
                "checkpoint.use_node_local_storage"
            )
            raise OSError(0, problem)
        everything = {name: entry for files in written for name, entry in files.items()}
        write_manifest(unfinished, replace(self._manifest, step=step, files=everything | ours))

    def _publish(self, step: int, _: list[dict[str, FileEntry]]) -> None:
        name = checkpoint_name(step)
        publish(self._folder / unfinished_name(name), self._folder / name)

    def _prune(self, step: int) -> None:
        newest, keep = checkpoint_name(step), self._config.checkpoint.keep_last
        problem = _attempt(lambda: prune(self._folder, newest, keep))
        if problem is not None:
            self._say(f"warning: older checkpoints could not be removed: {problem}.")


def _frozen_names(engine: Engine) -> frozenset[str]:
    """Names of frozen weights; a tied weight has all of its names."""
    named = engine.policy.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in named if not parameter.requires_grad)


def _attempt(action: Callable[[], None]) -> str | None:
    """Runs `action`, which works on files; returns the error as text, or None."""
    try:
        action()
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror}"
    return None


def _empty_folder(folder: Path) -> None:
    """Makes the folder of an unfinished checkpoint, after removing leftovers of killed runs."""
    remove_unfinished(folder.parent)
    folder.mkdir(parents=True)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
