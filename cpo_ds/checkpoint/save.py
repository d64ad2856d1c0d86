"""Saves checkpoints: all ranks write together, and one is published when it is whole."""

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
    """Saves a run's checkpoints, one at a time. All ranks call the same methods at the same time.

    With `checkpoint.in_background`, `save` returns when the state is copied to host memory, and
    `finish` publishes the checkpoint once every rank's files are on disk.
    """

    def __init__(
        self, engine: Engine, ranks: Ranks, config: Config, about: Manifest, say: Say
    ) -> None:
        self._engine, self._ranks, self._config, self._say = engine, ranks, config, say
        self.about = about
        self._folder = Path(config.output_dir) / "checkpoints"
        # One folder that all hosts share, or one on a disk of each host.
        self._is_local = bool(about.hosts)
        self._in_folders = ranks.per_folder(is_local=self._is_local)
        self._writer = CheckpointWriter(
            in_background=config.checkpoint.in_background,
            left_out=_frozen_names(engine) if config.trains_adapter else frozenset(),
        )
        self._pending: int | None = None  # the step that is being written
        self._started = 0.0
        self._failed = False
        self.last_saved: int | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a checkpoint is still to be published; the same on all ranks."""
        return self._pending is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank is still writing its part."""
        return self._writer.is_writing()

    def save(self, step: int) -> None:
        """Saves a checkpoint. A failure is said, and raised where the recipe wants to stop."""
        self.finish()
        self._started = time.perf_counter()
        unfinished = self._folder / unfinished_name(checkpoint_name(step))
        problem = self._attempt(lambda: _empty_folder(unfinished))
        self._pending = step
        if problem is None:
            self._engine.save_shards(
                unfinished, self._writer, without_frozen=self._config.trains_adapter
            )
            random_states = {"cpu": torch.get_rng_state()}
            if self._ranks.device.type == "cuda":
                random_states["cuda"] = torch.cuda.get_rng_state(self._ranks.device)
            self._writer.save(random_states, str(unfinished / random_state_name(self._ranks.rank)))
        if problem is not None or not self._config.checkpoint.in_background:
            self.finish(problem)

    def finish(self, problem: str | None = None) -> None:
        """Waits until all ranks' parts are on disk and publishes the pending checkpoint, if any."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        parts = self._ranks.gather(self._writer.result())
        written = [
            {name: replace(entry, rank=rank) for name, entry in files.items()}
            for rank, (files, _) in enumerate(parts)
        ]
        errors = [problem, *(error for _, error in parts)]
        failed = next((error for error in errors if error is not None), None)
        for action in (self._complete, self._publish):
            if failed is None:
                failed = self._attempt(partial(action, step, written))
        if failed is not None:
            self._give_up(step, failed)
            return
        self.last_saved = step
        seconds = time.perf_counter() - self._started
        size = sum(entry.bytes for files in written for entry in files.values())
        where = self._folder / checkpoint_name(step)
        self._say(f"saved {where} ({_size(size)}, {seconds:.1f} s)")
        self._in_folders(lambda: self._prune(step))  # once all hosts have the new one

    def _attempt(self, action: Callable[[], None]) -> str | None:
        """Does something with the folder, or each host's; what went wrong first, or None."""
        problem = self._in_folders(lambda: _attempt(action))
        return next((some for some in self._ranks.gather(problem) if some is not None), None)

    def _give_up(self, step: int, problem: str) -> None:
        self._failed = True
        unfinished = self._folder / unfinished_name(checkpoint_name(step))
        self._in_folders(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        self._in_folders(lambda: restore_replaced(self._folder))
        message = (
            f"the checkpoint of step {step} could not be saved: {problem}. What was written of it "
            "is removed, older checkpoints are as they were"
        )
        if self._config.checkpoint.on_save_error == "stop":
            raise UserError(f"{message}. Make room, or mend the folder, and run the same again.")
        self._say(f"warning: {message}. The run goes on without it; make room before the next.")

    def check_last(self, step: int) -> None:
        """Raises `UserError` where this run should have saved a step, its last, and could not."""
        if self._failed and self.last_saved != step:
            raise UserError(
                f"the run is complete, but its last checkpoint, of step {step}, could not be saved "
                "(see above)."
            )

    def _complete(self, step: int, written: list[dict[str, FileEntry]]) -> None:
        """Adds the manifest of what each rank wrote. In a folder of its own each host has its part.

        All parts are listed, so that the folders of all hosts, copied over each other, are whole;
        where hosts wrote a file of the same name, this host's counts.
        """
        unfinished = self._folder / unfinished_name(checkpoint_name(step))
        here = self._ranks.on_this_host if self._is_local else range(self._ranks.world_size)
        ours = {name: entry for rank in here for name, entry in written[rank].items()}
        lost = next((name for name in ours if not (unfinished / name).exists()), None)
        if lost is not None:
            raise OSError(0, f"{lost} was written on another host and does not show up here; "
                          "output_dir must be on a file system that all hosts share, or the "
                          "DeepSpeed file set checkpoint.use_node_local_storage")  # fmt: skip
        everything = {name: entry for files in written for name, entry in files.items()}
        write_manifest(unfinished, replace(self.about, step=step, files=everything | ours))

    def _publish(self, step: int, _: list[dict[str, FileEntry]]) -> None:
        name = checkpoint_name(step)
        publish(self._folder / unfinished_name(name), self._folder / name)

    def _prune(self, step: int) -> None:
        newest, keep = checkpoint_name(step), self._config.checkpoint.keep_last
        left = _attempt(lambda: prune(self._folder, newest, keep))
        if left is not None:
            self._say(f"warning: older checkpoints could not be removed: {left}.")


def _frozen_names(engine: Engine) -> frozenset[str]:
    named = engine.policy.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in named if not parameter.requires_grad)


def _attempt(action: Callable[[], None]) -> str | None:
    """Does something with files; what went wrong, or None."""
    try:
        action()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return None


def _empty_folder(folder: Path) -> None:
    """Makes an unfinished checkpoint's folder, and room: what a killed run left may be large."""
    remove_unfinished(folder.parent)
    folder.mkdir(parents=True)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
