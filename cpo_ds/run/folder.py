"""A run's folder: makes it, writes the configuration to it, and marks the run as finished."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import yaml

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.storage.files import replacing

_FINISHED = "finished.json"
_START_NAME = "PYTHON_CPO_DS_RUN"  # a variable that scripts/supervise.sh sets


def make_output_folder(folder: Path) -> None:
    """Makes the run's folder and tries to write to it. Raises `UserError` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"room for a file?")
    except OSError as error:
        raise UserError(
            f"output_dir {folder} cannot be written: {error.strerror}; make room, mend the "
            "permissions of the folder, or choose another output_dir."
        ) from None


def write_config(config: Config, folder: Path, world_size: int) -> None:
    """Writes the resolved configuration to `config.yaml`, with library versions as comments."""
    versions = {
        name: metadata.version(name)
        for name in ("torch", "deepspeed", "transformers", "peft", "datasets", "numpy")
    }
    environment = {"versions": versions, "python": sys.version.split()[0], "ranks": world_size}
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    comments = yaml.safe_dump(environment, sort_keys=False).splitlines()
    text += "".join(f"# {line}\n" for line in comments)
    try:
        with replacing(folder / "config.yaml") as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}/config.yaml cannot be written: {error.strerror}; make room, or choose "
            "another output_dir."
        ) from None


def write_finished(folder: Path, step: int) -> None:
    """Marks a run as finished, its export included; `step` is its last one.

    The mark holds the name that `scripts/supervise.sh` gave to this start, if any, so that the
    script can tell a run that this start finished or found finished.
    """
    text = json.dumps({"step": step, "start": os.environ.get(_START_NAME)})
    with replacing(folder / _FINISHED) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def finished_step(config: Config) -> int | None:
    """The last step of a finished run; None if it is not finished or its export is missing."""
    folder = Path(config.output_dir)
    if config.checkpoint.export and not (folder / "export").is_dir():
        return None
    try:
        step = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):  # the mark is missing or damaged
        return None
    return step if isinstance(step, int) else None


def clear_finished(folder: Path) -> None:
    """Removes the mark from a run that goes on."""
    (folder / _FINISHED).unlink(missing_ok=True)
