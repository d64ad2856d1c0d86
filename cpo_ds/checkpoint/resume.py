"""The checkpoint to resume from: found, verified, compared with the run, loaded.

What a checkpoint folder holds and when it gets its name is in `manifest.py`; how it is saved, in
`saver.py`; another number of ranks, in `universal.py`.
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
from cpo_ds.config import CheckpointConfig, Config
from cpo_ds.engine.engine import Engine
from cpo_ds.engine.settings import DeepSpeedSettings
from cpo_ds.errors import UserError
from cpo_ds.ranks.ranks import Ranks

Say = Callable[[str], None]


def find_checkpoint(
    checkpoint: CheckpointConfig, folder: Path, ranks: Ranks, say: Say, *, is_local: bool = False
) -> tuple[Path, Manifest] | None:
    """The newest intact checkpoint to resume from, every byte verified, or None to start anew.

    All ranks call it and share the reading. With `is_local` each host has a folder of its own, and
    a checkpoint counts that all have. Raises `UserError` where a named one is not there or is
    damaged, where all are, or where starting anew would mix a run into the files of an old one.
    """
    if is_local:
        found = ranks.gather(ranks.on_each_host(lambda: _candidates(checkpoint, folder)))
        paths = _on_all_hosts([some for some, _ in found], ranks, folder)
        latest = next((problem for _, problem in found if problem is not None), None)
    else:
        paths, latest = ranks.on_first(lambda: _candidates(checkpoint, folder))
    damaged: list[str] = []
    if latest is not None:
        problem, is_damage = latest
        if is_damage:
            damaged.append(problem)
        else:
            say(f"warning: {problem}.")
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
    if damaged:
        untried = tried < len(paths)
        raise UserError(
            f"{'; '.join(damaged)}. "
            + ("" if untried else "There is nothing whole to resume from: ")
            + "name another checkpoint with checkpoint.resume, or choose another output_dir to "
            f"start anew{'; checkpoint.on_damage: fall_back tries older ones' if untried else ''}."
        )
    return None


def _candidates(
    checkpoint: CheckpointConfig, folder: Path
) -> tuple[list[Path], tuple[str, bool] | None]:
    """Checkpoints to try in turn, and what is wrong with `latest` (see `latest_problem`)."""
    if folder.is_dir():
        restore_replaced(folder)
    if checkpoint.resume == "auto":
        found = resume_candidates(folder)
        if not found and (folder / "latest").exists():
            raise UserError(
                f"{folder}/latest names a checkpoint, but there is none; delete {folder} to start "
                "anew."
            )
        return found, latest_problem(folder)
    if checkpoint.resume == "never":
        if checkpoints(folder):
            raise UserError(
                f"{folder} holds checkpoints of an earlier run, and checkpoint.resume is never; "
                "choose another output_dir, delete that run, or set checkpoint.resume: auto."
            )
        return [], None
    chosen = Path(checkpoint.resume)
    is_one = chosen.name.startswith("step-")
    found = [chosen] if is_one else resume_candidates(chosen)
    if not chosen.is_dir() or not found:
        raise UserError(
            f"checkpoint.resume names {checkpoint.resume}, which holds no checkpoint; give a "
            "step-... folder (or the folder of several), auto or never."
        )
    return found, None if is_one else latest_problem(chosen)


def _on_all_hosts(found: list[list[Path]], ranks: Ranks, folder: Path) -> list[Path]:
    """The candidates that the disks of all hosts have, the best first; `found` is by rank."""
    common = [path for path in found[0] if all(path in some for some in found)]
    if not common and any(found):
        without = sorted({ranks.hosts[rank] for rank, some in enumerate(found) if not some})
        raise UserError(
            f"no checkpoint of {folder} is on the disks of all hosts"
            + (f": {', '.join(without)} has none" if without else "")
            + "; start on the hosts that saved, copy their step folders to the others, or choose "
            "another output_dir to start anew."
        )
    return common


def _verify(path: Path, ranks: Ranks, is_local: bool) -> tuple[Manifest | None, list[str]]:
    """The manifest, and what is wrong with the files; the ranks read some each.

    On a disk of its own each host needs the files of its ranks, or all for another number of ranks.
    """
    manifest, problem = ranks.per_folder(is_local=is_local)(lambda: _read(path))
    problems = [some for some in ranks.gather(problem) if some]
    if problems or manifest is None:
        return None, problems
    names = sorted(manifest.files)
    readers = ranks.on_this_host if is_local else list(range(ranks.world_size))
    if is_local and manifest.ranks == ranks.world_size:
        names = [name for name in names if manifest.files[name].rank in readers]
    mine = names[readers.index(ranks.rank) :: len(readers)]
    found = ranks.gather(damage(path, manifest, mine))
    return manifest, [problem for some in found for problem in some]


def _read(path: Path) -> tuple[Manifest | None, str]:
    try:
        return read_manifest(path), ""
    except DamagedCheckpoint as error:
        return None, str(error)


def check_identity(path: Path, manifest: Manifest, identity: dict[str, Any]) -> None:
    """Raises `UserError` naming the first thing that the checkpoint and this run do not share."""
    there, here = _flat(manifest.identity), _flat(identity)
    for key in here | there:
        if there.get(key) != here.get(key):
            raise UserError(
                f"the checkpoint {path} is of another run: its {key} is {there.get(key)!r}, "
                f"here it is {here.get(key)!r}; make them equal, name another checkpoint.resume, "
                "or choose a new output_dir."
            )


def check_weights_before(path: Path, manifest: Manifest, fingerprint: str) -> None:
    """Raises `UserError` where training started from other weights than those loaded here."""
    if manifest.weights_before != fingerprint:
        raise UserError(
            f"the checkpoint {path} was trained from other weights than those that model."
            "name_or_path (and model.adapter) give now; name the model that the run began with, "
            "or choose a new output_dir."
        )


def changed_settings(manifest: Manifest, config: Config, settings: DeepSpeedSettings) -> list[str]:
    """Settings that the run was saved with and are another way now, as `name: before -> now`."""
    there = _flat(manifest.configuration) | _flat(manifest.deepspeed)
    here = _flat(config.model_dump(mode="json")) | _flat(settings.file)
    skipped = ("checkpoint.", "logging.", "output_dir", "model.name_or_path")
    there.pop("deepspeed", None)  # the file's name; what it holds counts
    here.pop("deepspeed", None)
    return [
        f"{key}: {there.get(key)} -> {here.get(key)}"
        for key in here | there
        if there.get(key) != here.get(key) and not key.startswith(skipped)
    ]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """`{"loss": {"name": "cpo"}}` -> `{"loss.name": "cpo"}`: a message names just what differs."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): item for name, item in nested.items()}
    return flat


def load(engine: Engine, ranks: Ranks, path: Path, *, adapter_only: bool, same_ranks: bool) -> None:
    """Restores weights, optimizer and, on the same number of ranks, random states.

    The optimizer's settings (betas, weight decay...) are those of this run, not the checkpoint's.
    """
    engine.load_shards(path, without_frozen=adapter_only)  # these come from the base model
    if same_ranks:
        random_states = torch.load(path / random_state_name(ranks.rank), weights_only=True)
        torch.set_rng_state(random_states["cpu"])
        if "cuda" in random_states:
            torch.cuda.set_rng_state(random_states["cuda"], ranks.device)
    ranks.wait_for_all()
