"""Remembers the settings of a folder of rounds, so that other ones do not go on in it."""

from __future__ import annotations

from typing import Any

import yaml

from cpo_ds.errors import UserError
from cpo_ds.rounds.checks import Inputs
from cpo_ds.storage.files import writing

# Settings that may change between starts: they say how long and where, not what. Other numbers of
# ranks may change the last digits of training and so what follows.
_MAY_CHANGE = {
    "rounds", "watch.stop_if_falls_by", "train.gpus", "train.hostfile",
    "translate.ranks", "translate.hostfile", "score.ranks", "score.hostfile",
}  # fmt: skip


def check_record(inputs: Inputs) -> None:
    """Raises `UserError` if the folder holds rounds of other settings, or anything else."""
    folder, file = inputs.layout.folder, inputs.layout.record
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file; name a folder.")
    if not file.exists():
        others = sorted(path.name for path in folder.glob("*") if path.name != "lock")
        if others and others != ["logs"]:
            raise UserError(
                f"output_dir: {folder} holds {others[0]}, which is not from rounds; name a folder "
                "that is new or empty."
            )
        return
    try:
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        before, texts = _flat(known["settings"]), dict(known["inputs"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is not of rounds; mend it, or name another output_dir.") from None
    now = _flat(_record(inputs)["settings"])
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and name not in _MAY_CHANGE:
            raise UserError(
                f"{folder} holds rounds with another {name} ({before.get(name)}, now "
                f"{now.get(name)}); set it back, or name another output_dir."
            )
    for name, digest in inputs.fingerprints.items():
        if texts.get(name) != digest:
            raise UserError(
                f"{folder} holds rounds with another {name}: its content has changed since they "
                "began; bring it back, or name another output_dir."
            )


def write_record(inputs: Inputs) -> None:
    """Writes the settings, those that may change as they are now. Raises `UserError`."""
    text = yaml.safe_dump(_record(inputs), sort_keys=False, allow_unicode=True)
    with writing(inputs.layout.record) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _record(inputs: Inputs) -> dict[str, Any]:
    settings = inputs.settings.model_dump(mode="json")
    return {"settings": settings, "inputs": inputs.fingerprints}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
