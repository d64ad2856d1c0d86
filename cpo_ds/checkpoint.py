"""Sharded checkpoints: saved under their name only when whole, found again, checked, loaded.

    checkpoints/step-00000020/   DeepSpeed's shards, a random state per rank, run.json
    checkpoints/latest           the name of the newest whole one

Saving goes to `tmp-step-...` first; the rename, `latest` and the pruning of older ones follow only
when every rank's part is on disk.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cpo_ds.config import CheckpointConfig
from cpo_ds.engine import Engine, Ranks
from cpo_ds.schema import UserError


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def find_checkpoint(checkpoint: CheckpointConfig, folder: Path) -> Path | None:
    """The checkpoint to resume from, or None to start anew.

    Raises `UserError` where a named one is not there, or where starting anew would mix a new run
    into the checkpoints of an old one.
    """
    newest = _newest(folder)
    if checkpoint.resume == "auto":
        return newest
    if checkpoint.resume == "never":
        if newest is not None:
            raise UserError(
                f"{folder} holds checkpoints of an earlier run, and checkpoint.resume is never; "
                "choose another output_dir, delete that run, or set checkpoint.resume: auto."
            )
        return None
    chosen = Path(checkpoint.resume)
    if chosen.is_dir() and not (chosen / "run.json").is_file():
        chosen = _newest(chosen) or chosen
    if not (chosen / "run.json").is_file():
        raise UserError(
            f"checkpoint.resume names {checkpoint.resume}, which holds no checkpoint; give a "
            "step-... folder (or the folder of several), auto or never."
        )
    return chosen


def _newest(folder: Path) -> Path | None:
    latest = folder / "latest"
    if not latest.is_file():
        return None
    newest = folder / latest.read_text(encoding="utf-8").strip()
    if not (newest / "run.json").is_file():
        raise UserError(
            f"{latest} names {newest.name}, which is not there or not whole; name another "
            "checkpoint with checkpoint.resume, or delete the folder to start anew."
        )
    return newest


def read_step(checkpoint: Path, identity: dict[str, Any]) -> int:
    """The step of a checkpoint, after checking that it is of this run.

    `identity` says what a run must share with its checkpoint (model, loss, data, world size...).
    Raises `UserError` naming the first difference.
    """
    try:
        saved = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, OSError) as error:
        raise UserError(f"{checkpoint}/run.json cannot be read: {error}.") from None
    there, here = _flat(saved["identity"]), _flat(identity)
    for key in here | there:
        if there.get(key) != here.get(key):
            raise UserError(
                f"the checkpoint {checkpoint} is of another run: its {key} is {there.get(key)!r}, "
                f"here it is {here.get(key)!r}; make them equal, name another checkpoint.resume, "
                "or choose a new output_dir."
            )
    return int(saved["step"])


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """`{"loss": {"name": "cpo"}}` -> `{"loss.name": "cpo"}`: a message names just what differs."""
    flat: dict[str, Any] = {}
    for key, value in identity.items():
        nested = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): item for name, item in nested.items()}
    return flat


def load(engine: Engine, ranks: Ranks, checkpoint: Path, *, adapter_only: bool) -> None:
    """Restores weights, optimizer and random states; `UserError` for a damaged checkpoint."""
    try:
        loaded, _ = engine.deepspeed.load_checkpoint(
            str(checkpoint.parent),
            tag=checkpoint.name,
            load_module_strict=not adapter_only,  # frozen weights come from the base model
            load_lr_scheduler_states=False,
        )
        random_states = torch.load(checkpoint / _random_file(ranks.rank), weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(
            f"the checkpoint {checkpoint} cannot be loaded ({' '.join(str(error).split())[:200]}); "
            "name an earlier one with checkpoint.resume."
        ) from None
    if loaded is None:
        raise UserError(f"the checkpoint {checkpoint} is empty; name another checkpoint.resume.")
    torch.set_rng_state(random_states["cpu"])
    if "cuda" in random_states:
        torch.cuda.set_rng_state(random_states["cuda"], ranks.device)


def save(
    engine: Engine,
    ranks: Ranks,
    folder: Path,
    step: int,
    identity: dict[str, Any],
    *,
    adapter_only: bool,
    keep_last: int,
) -> None:
    """Saves a checkpoint, then points `latest` at it, then prunes older ones. All ranks call it."""
    name = checkpoint_name(step)
    unfinished = folder / f"tmp-{name}"
    if ranks.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    dist.barrier()
    engine.deepspeed.save_checkpoint(
        str(folder),
        tag=unfinished.name,
        save_latest=False,
        exclude_frozen_parameters=adapter_only,
    )
    random_states = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        random_states["cuda"] = torch.cuda.get_rng_state(ranks.device)
    torch.save(random_states, unfinished / _random_file(ranks.rank))
    dist.barrier()
    if ranks.rank == 0:
        (unfinished / "run.json").write_text(
            json.dumps({"step": step, "identity": identity}, indent=1)
        )
        _publish(folder, unfinished, name)
        _prune(folder, keep_last)
    dist.barrier()


def _random_file(rank: int) -> str:
    return f"random_state_rank_{rank}.pt"


def _publish(folder: Path, unfinished: Path, name: str) -> None:
    for file in unfinished.iterdir():
        _sync(file)
    _sync(unfinished)
    final = folder / name
    if final.exists():  # saved before, by a run that went on from an earlier checkpoint
        shutil.rmtree(final)
    unfinished.rename(final)
    pointer = folder / "latest.tmp"
    pointer.write_text(name)
    _sync(pointer)
    pointer.replace(folder / "latest")
    _sync(folder)


def _prune(folder: Path, keep_last: int) -> None:
    for old in sorted(folder.glob("step-*"))[:-keep_last]:
        shutil.rmtree(old)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
