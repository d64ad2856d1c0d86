"""The checkpoints of a run: which there are, which are intact, which one is meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cpo_ds.checkpoint.manifest import Manifest, inspect
from cpo_ds.checkpoint.publish import (
    checkpoint_name,
    checkpoints,
    is_checkpoint_name,
    resume_candidates,
    step_of,
)
from cpo_ds.errors import UserError

Say = Callable[[str], None]


def find_intact(run: Path, checkpoint: str | None, say: Say) -> tuple[Path, Manifest]:
    """The named checkpoint (a step or a folder), else the newest intact one, every byte verified.

    `run` may be a step-... folder itself. Damaged ones that are passed over are said. Raises
    `UserError` where there is none, or where the named one is damaged.
    """
    found = _candidates(run, checkpoint)
    damaged: list[str] = []
    for path in found:
        manifest, problems = inspect(path)
        if manifest is not None and not problems:
            for problem in damaged:
                say(f"warning: damaged: {problem}. Taking {path.name}.")
            return path, manifest
        damaged.append(problems[0])
    named = checkpoint is not None or _is_checkpoint(run)
    rest = "name another one" if named else "none of the run's checkpoints is intact"
    raise UserError(f"{'; '.join(damaged)}; {rest} (`cpo-ds checkpoints RUN` lists them).")


def newest(run: Path) -> Path | None:
    """The newest published checkpoint of a run, intact or not."""
    return next(iter(resume_candidates(run / "checkpoints")), None)


def _candidates(run: Path, checkpoint: str | None) -> list[Path]:
    if checkpoint is not None:
        path = Path(checkpoint).resolve()
        if checkpoint.isdecimal():
            path = run / "checkpoints" / checkpoint_name(int(checkpoint))
    elif _is_checkpoint(run):
        path = run.resolve()
    else:
        found = resume_candidates(_folder_of(run))
        if not found:
            raise UserError(f"{run} has no checkpoint yet; give the output_dir of a run that does.")
        return found
    if not path.is_dir() or not _is_checkpoint(path):
        has = [p.name for p in checkpoints(run / "checkpoints")]
        raise UserError(
            f"there is no checkpoint {path}; "
            + (f"{run} has {', '.join(has)}." if has else "give a step or a step-... folder.")
        )
    return [path]


def _is_checkpoint(path: Path) -> bool:
    return is_checkpoint_name(path.resolve().name)


def _folder_of(run: Path) -> Path:
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}; give the output_dir of a run.")
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoints folder; give the output_dir of a run.")
    return folder


def list_checkpoints(run: Path) -> tuple[str, bool]:
    """A table of a run's checkpoints, verified byte by byte, and whether all are intact.

    Raises `UserError` where there are none.
    """
    found = checkpoints(_folder_of(run))
    if not found:
        raise UserError(f"{run} has no checkpoint yet.")
    lines = [f"{'step':>10}  {'size':>10}  {'ranks':>5}  {'ZeRO':>4}  state"]
    all_intact = True
    for path in found:
        manifest, problems = inspect(path)
        all_intact = all_intact and not problems
        state = f"damaged: {'; '.join(problems)}" if problems else "intact"
        size, ranks, stage = "?", "?", "?"
        if manifest is not None:
            size = f"{manifest.size / 2**20:.1f} MiB"
            ranks, stage = str(manifest.ranks), str(manifest.zero_stage)
        step = step_of(path.name)
        lines.append(f"{step:>10}  {size:>10}  {ranks:>5}  {stage:>4}  {state}")
    return "\n".join(lines), all_intact
