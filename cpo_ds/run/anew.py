"""Moves an earlier run aside in its folder, for `checkpoint.resume: restart`.

runs/x/earlier-1/    everything that the earlier run wrote to runs/x
runs/x/begun.json    names of the start that moved it, such as the one of scripts/supervise.sh

A start may be made again: by scripts/supervise.sh after a fault, by Slurm for a requeued job, by
torchrun for ranks that failed. It must go on with the run that it began, so it moves nothing. All
functions but `is_again` need the folder's lock.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.storage.files import replacing, sync

_BEGUN = "begun.json"
_MOVING = "earlier-unfinished"  # where a move collects what it has moved so far
# The files and folders that a run writes. Tokenized pairs and the log-probs of a reference stay:
# they are kept under fingerprints, so that a new run reads them if they are still right.
_OF_A_RUN = (
    *("config.yaml", "metrics.jsonl", "curves.png", "report.html", "samples.jsonl"),
    *("checkpoints", "export", "finished.json", "logs", "non_finite.json", "stacks"),
    "held_out_pairs.jsonl",
    *("tensorboard", "trackers", _BEGUN),
)
# Variables that name a start, each with the one that counts how often it was made again; a name
# without a count belongs to one start alone.
_NAMES = {
    "PYTHON_CPO_DS_RUN": None,  # set by scripts/supervise.sh
    "SLURM_JOB_ID": "SLURM_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID": "TORCHELASTIC_RESTART_COUNT",
}


def start_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of this process's environment that tell a start from others."""
    names = [name for pair in _NAMES.items() for name in pair if name]
    start = {name: environment[name] for name in names if name in environment}
    # torchrun gives all of its runs the same name if it is not told another one. Its process is the
    # parent of the ranks, of those that it starts again too.
    if start.get("TORCHELASTIC_RUN_ID") == "none":
        start["TORCHELASTIC_RUN_ID"] = f"process {os.getppid()}"
    return start


def is_again(folder: Path, start: Mapping[str, str]) -> bool:
    """Whether the start with these variables has begun the run in `folder` before."""
    try:
        begun = json.loads((folder / _BEGUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(begun, dict):
        return False
    return any(
        name in start and start[name] == begun.get(name) and (not count or _number(start, count))
        for name, count in _NAMES.items()
    )


def _number(start: Mapping[str, str], name: str) -> int:
    text = start.get(name, "")
    return int(text) if text.isdecimal() else 0


def check_inputs_stay(config: Config) -> None:
    """Raises `UserError` if a run reads from what it would move aside."""
    inputs = {
        "model.name_or_path": config.model.name_or_path,
        "model.adapter": config.model.adapter,
        "data.path": config.data.path,
        "data.eval_path": config.data.eval_path,
    }
    moved = [(Path(config.output_dir) / name).resolve() for name in _OF_A_RUN]
    for setting, path in inputs.items():
        if path and any(Path(path).resolve().is_relative_to(old) for old in moved):
            raise UserError(
                f"{setting} {path} is a part of the run that checkpoint.resume: restart would move "
                "aside; copy it elsewhere, or choose another output_dir."
            )


def move_aside(folder: Path, start: Mapping[str, str]) -> Path | None:
    """Moves a run's files into a new folder beside them, unless this start has begun it itself.

    Returns the new folder, None if nothing was moved. `finish_move` finishes a move that was
    interrupted. Raises `UserError` if the files cannot be moved.
    """
    aside = finish_move(folder)  # of a start that was killed
    if is_again(folder, start):
        return aside
    if any((folder / name).exists() for name in _OF_A_RUN):
        with _moving(folder):
            (folder / _MOVING).mkdir(exist_ok=True)
        aside = finish_move(folder)
    # Written last: if the start is made again, all files that it finds then are its own.
    with _moving(folder), replacing(folder / _BEGUN) as unfinished:
        unfinished.write_text(json.dumps(dict(start)) + "\n", encoding="utf-8")
    return aside


def finish_move(folder: Path) -> Path | None:
    """Finishes a move that was begun; returns the folder with the earlier run, or None.

    Every run calls it before it writes anything, so that no two runs mix.
    """
    moving = folder / _MOVING
    if not moving.is_dir():
        return None
    numbers = [path.name.removeprefix("earlier-") for path in folder.glob("earlier-*")]
    number = 1 + max((int(text) for text in numbers if text.isdecimal()), default=0)
    final = folder / f"earlier-{number}"
    with _moving(folder):
        for name in _OF_A_RUN:
            if (folder / name).exists():
                (folder / name).rename(moving / name)
        moving.rename(final)
        sync(folder)
    return final


@contextlib.contextmanager
def _moving(folder: Path) -> Iterator[None]:
    """Raises `UserError` for an `OSError` inside the block."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the earlier run in {folder} cannot be moved aside: {error.filename or folder}: "
            f"{error.strerror}; make room, mend the permissions, or choose another output_dir."
        ) from None
