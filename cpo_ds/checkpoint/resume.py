"""Finds the checkpoint to resume from, verifies it and loads it.

`publish.py` names and lists checkpoints, `manifest.py` verifies them, `identity.py` compares their
run with another, `save.py` saves them, and `reshard.py` converts those of another number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpo_ds.checkpoint.manifest import (
    DamagedCheckpoint,
    Manifest,
    damage,
    random_state_name,
    read_manifest,
)
from cpo_ds.checkpoint.publish import (
    checkpoints,
    latest_problem,
    restore_replaced,
    resume_candidates,
)
from cpo_ds.config import CheckpointConfig
from cpo_ds.engine.engine import Engine
from cpo_ds.errors import UserError
from cpo_ds.ranks.ranks import Ranks

Say = Callable[[str], None]  # prints a line on rank 0


def find_checkpoint(
    checkpoint: CheckpointConfig, folder: Path, ranks: Ranks, say: Say, *, is_local: bool = False
) -> tuple[Path, Manifest] | None:
    """Finds the newest intact checkpoint to resume from; None to start a new run.

    All ranks call it and share the reading of every byte. With `is_local` each host has a folder of
    its own, and only checkpoints that all hosts have count. Raises `UserError` if a named
    checkpoint is missing or damaged, if all are damaged, or if a new run would mix its files with
    those of an old one.
    """
    # List the candidates, the best first.
    if is_local:
        listed = ranks.gather(ranks.on_each_host(lambda: _candidates(checkpoint, folder)))
        paths = _on_all_hosts([paths for paths, _ in listed], ranks, folder)
        latest = next((problem for _, problem in listed if problem is not None), None)
    else:
        paths, latest = ranks.on_first(lambda: _candidates(checkpoint, folder))
    damaged: list[str] = []
    if latest is not None:
        problem, is_damage = latest
        if is_damage:
            damaged.append(problem)
        else:
            say(f"warning: {problem}.")
    # Try them in turn until one is intact, or at the first damage if the recipe says so.
    stops = checkpoint.on_damage == "stop"
    tried = 0
    for path in paths:
        if damaged and stops:
            break
        tried += 1
        manifest, problems = _verify(path, ranks, is_local)
        if manifest is not None and not problems:
            if damaged:
                say(f"warning: damaged: {'; '.join(damaged)}. Going on from {path.name}.")
            return path, manifest
        damaged += problems[:1]
    # None is intact: a new run starts only if there was none at all.
    if not damaged:
        return None
    reason, advice = "No intact checkpoint is left to resume from: ", ""
    if tried < len(paths):
        reason, advice = "", "; checkpoint.on_damage: fall_back tries older ones"
    raise UserError(
        f"{'; '.join(damaged)}. {reason}name another checkpoint with checkpoint.resume, or choose "
        f"another output_dir to start a new run{advice}."
    )


def stage_to_resume(checkpoint: CheckpointConfig, folder: Path) -> int | None:
    """The ZeRO stage of the first readable checkpoint to resume from; None to start a new run.

    It changes nothing in the folder, so it may be called before the folder is locked.
    """
    manifest = _first_manifest(checkpoint, folder)
    return manifest.zero_stage if manifest else None


def saved_configuration(checkpoint: CheckpointConfig, folder: Path) -> dict[str, Any]:
    """The recipe of the first readable checkpoint to resume from; empty for a new run.

    It changes nothing in the folder, so it may be called before the folder is locked.
    """
    manifest = _first_manifest(checkpoint, folder)
    return manifest.configuration if manifest else {}


def _first_manifest(checkpoint: CheckpointConfig, folder: Path) -> Manifest | None:
    for path in _listed(checkpoint, folder):
        try:
            return read_manifest(path)
        except DamagedCheckpoint:
            continue
    return None


def _candidates(
    checkpoint: CheckpointConfig, folder: Path
) -> tuple[list[Path], tuple[str, bool] | None]:
    """Checkpoints to try in turn, and the problem with `latest` (see `latest_problem`)."""
    if folder.is_dir():
        restore_replaced(folder)
    candidates = _listed(checkpoint, folder)
    # The run's own checkpoints.
    if checkpoint.resume == "auto":
        if not candidates and (folder / "latest").exists():
            raise UserError(
                f"{folder}/latest names a checkpoint, but there is none; delete {folder} to start "
                "a new run."
            )
        return candidates, latest_problem(folder)
    # No checkpoint at all.
    if checkpoint.resume == "never":
        if checkpoints(folder):
            raise UserError(
                f"{folder} holds checkpoints of an earlier run, and checkpoint.resume is never; "
                "choose another output_dir, delete it, or set checkpoint.resume: auto (to go on "
                "with it) or restart (to move it aside)."
            )
        return [], None
    # A checkpoint, or a folder of several, by name.
    named = Path(checkpoint.resume)
    if not named.is_dir() or not candidates:
        raise UserError(
            f"checkpoint.resume names {checkpoint.resume}, which holds no checkpoint; give a "
            "step-... folder (or the folder of several), auto, never or restart."
        )
    return candidates, None if _is_one(named) else latest_problem(named)


def _listed(checkpoint: CheckpointConfig, folder: Path) -> list[Path]:
    """The checkpoints that `checkpoint.resume` allows, the best first."""
    if checkpoint.resume in ("never", "restart"):
        return []
    if checkpoint.resume == "auto":
        return resume_candidates(folder)
    named = Path(checkpoint.resume)
    return [named] if _is_one(named) else resume_candidates(named)


def _is_one(named: Path) -> bool:
    """Whether a folder is a checkpoint itself, by its name, rather than one of several."""
    return named.name.startswith("step-")


def _on_all_hosts(by_rank: list[list[Path]], ranks: Ranks, folder: Path) -> list[Path]:
    """The candidates that the disks of all hosts have, the best first."""
    common = [path for path in by_rank[0] if all(path in paths for paths in by_rank)]
    if not common and any(by_rank):
        without = sorted({ranks.hosts[rank] for rank, paths in enumerate(by_rank) if not paths})
        raise UserError(
            f"no checkpoint of {folder} is on the disks of all hosts"
            + (f": {', '.join(without)} has none" if without else "")
            + "; start on the hosts that saved, copy their step folders to the others, or choose "
            "another output_dir to start a new run."
        )
    return common


def _verify(path: Path, ranks: Ranks, is_local: bool) -> tuple[Manifest | None, list[str]]:
    """Verifies a checkpoint: its manifest, None if damaged, and all damage; ranks share the files.

    If each host has its own disk, a host needs the files of its own ranks only. For another number
    of ranks it needs all files.
    """
    manifest, problem = ranks.per_folder(is_local=is_local)(lambda: _read(path))
    problems = [problem for problem in ranks.gather(problem) if problem]
    if problems or manifest is None:
        return None, problems
    names = sorted(manifest.files)
    readers = ranks.on_this_host if is_local else list(range(ranks.world_size))
    if is_local and manifest.ranks == ranks.world_size:
        names = [name for name in names if manifest.files[name].rank in readers]
    # Each of the readers takes every so-many-th file.
    mine = names[readers.index(ranks.rank) :: len(readers)]
    by_rank = ranks.gather(damage(path, manifest, mine))
    return manifest, [problem for problems in by_rank for problem in problems]


def _read(path: Path) -> tuple[Manifest | None, str]:
    """Reads a manifest; returns it, or None and the damage."""
    try:
        return read_manifest(path), ""
    except DamagedCheckpoint as error:
        return None, str(error)


def load(engine: Engine, ranks: Ranks, path: Path, *, adapter_only: bool, same_ranks: bool) -> None:
    """Loads weights, optimizer and, on the same number of ranks, random states.

    The optimizer's settings (betas, weight decay...) are those of this run, not the checkpoint's.
    With `adapter_only` the checkpoint has no frozen weights: they come from the base model.
    """
    engine.load_shards(path, without_frozen=adapter_only)
    if same_ranks:
        random_states = torch.load(path / random_state_name(ranks.rank), weights_only=True)
        torch.set_rng_state(random_states["cpu"])
        if "cuda" in random_states:
            torch.cuda.set_rng_state(random_states["cuda"], ranks.device)
    ranks.wait_for_all()
