"""Lists and verifies the checkpoints of a run, and finds the one that a command names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cpo_ds.checkpoint.manifest import Manifest, inspect
from cpo_ds.checkpoint.publish import (
    Hold,
    checkpoint_name,
    checkpoints,
    is_checkpoint_name,
    resume_candidates,
    step_of,
)
from cpo_ds.errors import UserError

_LOOKS = 10  # at a list whose checkpoints a run removes meanwhile


class Intact(NamedTuple):
    """A checkpoint that is whole, and stays so as long as `hold` exists."""

    path: Path
    manifest: Manifest
    hold: Hold


def find_intact(run: Path, checkpoint: str | None, say: Callable[[str], None]) -> Intact:
    """Finds the named checkpoint (a step or a folder), else the newest intact one.

    `run` may be a step-... folder itself. Every byte is verified. Damaged checkpoints that are
    passed over are reported by `say`. A run may save and prune meanwhile. Raises `UserError` if
    there is no checkpoint, or if the named one is damaged.
    """
    is_named = checkpoint is not None or _is_checkpoint(run)
    for _ in range(_LOOKS):
        damaged: list[str] = []
        was_pruned = False
        for path in _candidates(run, checkpoint):
            hold, manifest, problems = _inspect_held(path)
            if hold is None:
                was_pruned = True
                continue
            if manifest is not None and not problems:
                for problem in damaged:
                    say(f"warning: damaged: {problem}. Taking {path.name}.")
                return Intact(path, manifest, hold)
            damaged.append(problems[0])
        if not was_pruned:
            break
    if not damaged:
        raise UserError(
            f"the checkpoints of {run} were removed while they were looked at, because a run there "
            "saves newer ones; give the same command again, or raise checkpoint.keep_last."
        )
    advice = "name another one" if is_named else "none of the run's checkpoints is intact"
    raise UserError(f"{'; '.join(damaged)}; {advice} (`cpo-ds checkpoints RUN` lists them).")


def _inspect_held(path: Path) -> tuple[Hold | None, Manifest | None, list[str]]:
    """Verifies a checkpoint and keeps it from being pruned; (None, None, []) if it is gone."""
    try:
        hold = Hold(path)
    except FileNotFoundError:
        return None, None, []
    manifest, problems = inspect(path)
    if problems and not path.is_dir():  # pruned, on a file system without locks
        return None, None, []
    return hold, manifest, problems


def newest(run: Path) -> Path | None:
    """The newest published checkpoint of a run, intact or not."""
    return next(iter(resume_candidates(run / "checkpoints")), None)


def check_named(run: Path, checkpoint: str | None) -> None:
    """Raises `UserError` if there is no such run or checkpoint; reads no weights.

    For commands that import slow libraries before they call `find_intact`.
    """
    _candidates(run, checkpoint)


def _candidates(run: Path, checkpoint: str | None) -> list[Path]:
    """The named checkpoint alone, or all checkpoints of the run, the best first."""
    if checkpoint is not None:
        path = Path(checkpoint).resolve()
        if checkpoint.isdecimal():
            path = run / "checkpoints" / checkpoint_name(int(checkpoint))
    elif _is_checkpoint(run):
        path = run.resolve()
    else:
        candidates = resume_candidates(_folder_of(run))
        if not candidates:
            raise UserError(f"{run} has no checkpoint yet; give the output_dir of a run that does.")
        return candidates
    if not path.is_dir() or not _is_checkpoint(path):
        names = [p.name for p in checkpoints(run / "checkpoints")]
        raise UserError(
            f"there is no checkpoint {path}; "
            + (f"{run} has {', '.join(names)}." if names else "give a step or a step-... folder.")
        )
    return [path]


def _is_checkpoint(path: Path) -> bool:
    return is_checkpoint_name(path.resolve().name)


def _folder_of(run: Path) -> Path:
    """The folder with a run's checkpoints. Raises `UserError` if it is missing."""
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}; give the output_dir of a run.")
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoints folder; give the output_dir of a run.")
    return folder


def list_checkpoints(run: Path) -> tuple[str, bool]:
    """Returns a table of a run's checkpoints, and whether all are intact; reads every byte.

    Raises `UserError` if there are none.
    """
    paths = checkpoints(_folder_of(run))
    if not paths:
        raise UserError(f"{run} has no checkpoint yet.")
    lines = [f"{'step':>10}  {'size':>10}  {'ranks':>5}  {'ZeRO':>4}  state"]
    all_intact = True
    for path in paths:
        hold, manifest, problems = _inspect_held(path)
        all_intact = all_intact and not problems
        state = f"damaged: {'; '.join(problems)}" if problems else "intact"
        if hold is None:
            state = "removed meanwhile by the run, which saved newer ones"
        size, ranks, stage = "?", "?", "?"
        if manifest is not None:
            size = f"{manifest.size / 2**20:.1f} MiB"
            ranks, stage = str(manifest.ranks), str(manifest.zero_stage)
        step = step_of(path.name)
        lines.append(f"{step:>10}  {size:>10}  {ranks:>5}  {stage:>4}  {state}")
    return "\n".join(lines), all_intact
