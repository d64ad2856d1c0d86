"""A run's folder: makes it, writes the configuration to it, and marks the run as finished."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.storage.files import replacing
from cpo_ds.storage.metrics_file import read_metrics

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


def is_described(folder: Path, manifest: Manifest) -> bool:
    """Whether `config.yaml` holds the settings that trained a checkpoint."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        return yaml.safe_load(text) == manifest.configuration
    except (OSError, ValueError, yaml.YAMLError):
        return False


def is_measured(folder: Path, step: int, *, evaluates: bool) -> bool:
    """Whether the metrics of a run's last step are written, and with `evaluates` its evaluation."""
    try:
        training, held_out = read_metrics(folder)
    except (UserError, ValueError):  # no such file, or a damaged line
        return False
    lines = [training, held_out] if evaluates else [training]
    return all(part and part[-1]["step"] == step for part in lines)


def write_finished(folder: Path, step: int, *, exported: bool) -> None:
    """Marks a run as finished; `step` is its last one, and `exported` whether it has an export.

    The mark holds the name that `scripts/supervise.sh` gave to this start, if any, so that the
    script can tell a run that this start finished or found finished.
    """
    start = os.environ.get(_START_NAME)
    text = json.dumps({"step": step, "start": start, "exported": exported})
    with replacing(folder / _FINISHED) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def mark_finished_again(folder: Path, step: int) -> None:
    """Marks a run as finished that was found so; leaves its mark alone if that tells all.

    A start by `scripts/supervise.sh` leaves its name in the mark.
    """
    mark = _read_mark(folder)
    if mark is None or mark["step"] != step:
        write_finished(folder, step, exported=False)
    elif os.environ.get(_START_NAME):
        write_finished(folder, step, exported=mark.get("exported", True))


def is_finished(config: Config, step: int) -> bool:
    """Whether a run is marked as finished at `step`, with an export if the recipe asks for one."""
    folder = Path(config.output_dir)
    mark = _read_mark(folder)
    if mark is None or mark["step"] != step:
        return False
    has_export = mark.get("exported", True) and (folder / "export").is_dir()
    return has_export or not config.checkpoint.export


def _read_mark(folder: Path) -> dict[str, Any] | None:
    """The mark of a finished run; None if it is missing or damaged."""
    try:
        mark = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and isinstance(mark.get("step"), int) else None


def clear_finished(folder: Path) -> None:
    """Removes the mark from a run that goes on."""
    (folder / _FINISHED).unlink(missing_ok=True)
