"""An export gets its name when it is complete and checked, or is put aside."""

from __future__ import annotations

import shutil
from pathlib import Path

from cpo_ds.checkpoint.publish import (
    checkpoint_name,
    publish_folder,
    replaced_name,
    unfinished_name,
)
from cpo_ds.errors import UserError


def unfinished_folder(folder: Path) -> Path:
    """The folder that an export is written to before it gets the name of `folder`."""
    return folder.with_name(unfinished_name(folder.name))


def unverified_name(name: str) -> str:
    """The name of an export that does not give what the run trained."""
    return f"{name}-unverified"


def publish_export(folder: Path) -> None:
    """Gives a written export its name, in place of an older export if there is one."""
    publish_folder(unfinished_folder(folder), folder)
    shutil.rmtree(folder.with_name(replaced_name(folder.name)), ignore_errors=True)


def put_aside(folder: Path) -> Path:
    """Gives a written export the name of one that is not to be used; returns the new folder."""
    aside = folder.with_name(unverified_name(folder.name))
    shutil.rmtree(aside, ignore_errors=True)
    return unfinished_folder(folder).rename(aside)


def finish_export(folder: Path, problem: str | None, step: int) -> None:
    """Gives an export its name. With a `problem` it gets another name, and `UserError` is raised.

    Raises `UserError` too if the disk does not let it. Only rank 0 calls it.
    """
    try:
        if problem is None:
            publish_export(folder)
            return
        aside = put_aside(folder)
    except OSError as error:
        text = f"{error.filename or folder}: {error.strerror}"
        raise _not_written(text, folder, step) from None
    raise UserError(
        f"the export does not give what the run trained: {problem} It was put aside as {aside}. "
        f"{_advice(folder.parent, step)} checkpoint.verify_export: false leaves this check out."
    )


def check_written(problem: str | None, folder: Path, step: int) -> None:
    """Raises `UserError` for a problem, with advice that depends on whether the step is saved."""
    if problem is not None:
        raise _not_written(problem, folder, step)


def _not_written(problem: str, folder: Path, step: int) -> UserError:
    advice = _advice(folder.parent, step)
    return UserError(f"the export could not be written: {problem}. {advice}")


def _advice(run: Path, step: int) -> str:
    """Advice that depends on whether a step's checkpoint is saved."""
    if (run / "checkpoints" / checkpoint_name(step)).is_dir():
        return (
            f"The checkpoint of step {step} is saved: after the repair, `cpo-ds export {run}`, "
            "or the same command again, writes the export."
        )
    return f"The checkpoint of step {step} is not saved either; run the same command again."
