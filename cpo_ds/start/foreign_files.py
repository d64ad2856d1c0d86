"""Reads the settings of other trainers from their YAML, JSON and shell files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cpo_ds.errors import UserError
from cpo_ds.settings.problems import yaml_problem
from cpo_ds.start.shell_script import read_command

_MOST_BYTES = 1_000_000
_KINDS = "a YAML or JSON file of settings, or the shell script that starts the training (.sh)"


class Source(NamedTuple):
    """The settings in a file of another trainer, and in the files that it names."""

    settings: dict[str, Any]
    launcher: dict[str, Any]  # options of accelerate, torchrun or deepspeed
    accelerate: dict[str, Any]  # the contents of the file that accelerate launch reads
    notes: dict[str, str]  # what was not read, and the reason


def read_source(path: Path) -> Source:
    """The settings of a file. Raises `UserError` for a file that holds none."""
    text = _text(path)
    if path.suffix == ".py":
        raise UserError(
            f"{path} is a Python script, which import does not run; give {_KINDS}, or write the "
            "script's arguments into a YAML file, one `name: value` a line."
        )
    if path.suffix in (".yaml", ".yml", ".json"):
        return Source(_mapping(text, path), {}, {}, {})
    command = read_command(text, str(path))
    settings, launcher, notes = dict(command.options), command.launcher, {}
    for name, value in command.unknown.items():
        notes[name] = f"{value} is known only when the script runs; set it in the recipe"
    if command.others:
        notes["other commands"] = f"not read: {'; '.join(command.others)}"

    # Read the files that the command names; its options come before theirs.
    named = settings.pop("config", None)
    for file in [*command.files, *([named] if isinstance(named, str) else [])]:
        settings = _named(file, path, "settings", notes) | settings
    config = launcher.get("config_file")
    accelerate = _named(str(config), path, "accelerate's settings", notes) if config else {}
    return Source(settings, launcher, accelerate, notes)


def read_deepspeed(value: Any, script: Path) -> tuple[dict[str, Any], str]:
    """A DeepSpeed configuration, given as a mapping or a file, and what hinders reading it."""
    if isinstance(value, dict):
        return value, ""
    notes: dict[str, str] = {}
    return _named(str(value), script, "DeepSpeed's settings", notes), notes.get(str(value), "")


def _text(path: Path) -> str:
    if not path.exists():
        raise UserError(f"there is no file {path}; give {_KINDS}.")
    if not path.is_file():
        raise UserError(f"{path} is a folder; give {_KINDS}.")
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} is larger than a megabyte, so it is no such file; give {_KINDS}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8; give {_KINDS}.") from None
    if not text.strip():
        raise UserError(f"{path} is empty; give {_KINDS}.")
    return text


def _mapping(text: str, path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises `UserError` for anything else."""
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        problem = f"is not valid JSON: {error}" if path.suffix == ".json" else yaml_problem(error)
        raise UserError(f"{path} {problem}.") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path} holds no settings; write one `name: value` a line, as in learning_rate: 1e-4."
        )
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _named(file: str, script: Path, kind: str, notes: dict[str, str]) -> dict[str, Any]:
    """The mapping in a file that a script names; {} and a note if the file does not exist.

    It is looked for from the working directory, the script's folder and the folder above.
    """
    for folder in (Path(), script.parent, script.parent.parent):
        if (path := folder / file).is_file():
            return _mapping(_text(path), path)
    notes[file] = f"no such file, so {kind} in it are not in the recipe"
    return {}
