"""The metrics that selected a system's training pairs: from its run, its export or its pairs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cpo_ds.checkpoint.manifest import MANIFEST, DamagedCheckpoint, read_manifest
from cpo_ds.data.selected import SELECTED_BY
from cpo_ds.data.sources import read_raw
from cpo_ds.errors import UserError, did_you_mean, one_line

Selected = dict[str, list[str]]

_SETTINGS = ".settings.json"  # ends the name of the file that cpo-ds translate writes beside rows
_MBR = {"mbr": "chrf"}  # the metric by which samples are compared with each other


def selected_metrics(
    rows: Path, trained_by: Sequence[str], selected_by: Sequence[str], systems: Sequence[str]
) -> tuple[Selected, list[str]]:
    """The metrics of each system by the options, and notes on folders that do not tell.

    The settings that cpo-ds translate leaves beside `rows` count too. Raises `UserError` for a
    folder that does not exist or is neither run, export nor pairs.
    """
    selected = {name: named for name, named in _beside(rows).items() if name in systems}
    notes: list[str] = []
    for given in trained_by:
        names, folder = _split(given, systems, "--trained-by", is_path=True)
        metrics = _read(Path(folder).expanduser())
        if metrics is None:
            notes.append(
                f"{folder} does not say which metrics selected its pairs: give them by "
                "--selected-by, if any did"
            )
        for name in names:
            selected.setdefault(name, []).extend(metrics or [])
    for given in selected_by:
        names, metrics_text = _split(given, systems, "--selected-by", is_path=False)
        for name in names:
            parts = [part.strip() for part in metrics_text.split("+") if part.strip()]
            selected.setdefault(name, []).extend(parts)
    return {name: list(dict.fromkeys(metrics)) for name, metrics in selected.items()}, notes


def _beside(rows: Path) -> Selected:
    """The metrics of the system whose settings of translating stand beside the rows, if any.

    They selected the pairs of its adapter or model, if that is a run's or an export's folder, or
    chose among its samples.
    """
    try:
        text = rows.with_name(f"{rows.name}{_SETTINGS}").read_text(encoding="utf-8")
        settings = json.loads(text)
        system = str(settings["system"])
        folders = [Path(str(settings.get(key) or "")) for key in ("adapter", "model")]
        rerank = settings.get("rerank")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    metrics = [_MBR.get(str(rerank), str(rerank))] if rerank else []
    for folder in folders:
        if any((folder / name).is_file() for name in (MANIFEST, "config.yaml", "README.md")):
            with contextlib.suppress(UserError):  # a folder of others, which tells nothing
                metrics += _read(folder) or []
    return {system: list(dict.fromkeys(metrics))} if metrics else {}


def _split(
    given: str, systems: Sequence[str], option: str, *, is_path: bool
) -> tuple[Sequence[str], str]:
    """The systems and the value of an option. Raises `UserError` for an unknown system."""
    name, equals, value = given.partition("=")
    if not equals or (is_path and Path(given).exists()):
        return systems, given
    if name not in systems:
        raise UserError(
            f"{option} {given}: there is no system {name} in the rows"
            f"{did_you_mean(name, systems)}; they have {', '.join(systems)}."
        )
    if not value:
        raise UserError(f"{option} {given}: write SYSTEM=VALUE.")
    return [name], value


def _read(path: Path) -> list[str] | None:
    """The metrics that a run, an export or pairs name; None if they say nothing."""
    if path.is_file():
        return _of_pairs(path)
    if not path.is_dir():
        raise UserError(f"--trained-by {path} does not exist; give a run, an export, or pairs.")
    try:
        if (path / MANIFEST).is_file():
            return _of_configuration(read_manifest(path).configuration)
        if (path / "config.yaml").is_file():
            text = (path / "config.yaml").read_text(encoding="utf-8")
            return _of_configuration(yaml.safe_load(text))
        if (path / "README.md").is_file():
            return _of_card(path / "README.md")
    except (OSError, ValueError, yaml.YAMLError, DamagedCheckpoint) as error:
        raise UserError(f"--trained-by {path} cannot be read: {one_line(error)}.") from None
    if (path / "pairs.jsonl").is_file():
        return _of_pairs(path / "pairs.jsonl")
    raise UserError(
        f"--trained-by {path} is neither a run, nor a checkpoint, nor an export, nor a folder of "
        "cpo-ds prepare select."
    )


def _of_configuration(configuration: Any) -> list[str] | None:
    """The metrics that a run's configuration names."""
    data = configuration.get("data") if isinstance(configuration, dict) else None
    return _recorded(data)


def _of_pairs(path: Path) -> list[str] | None:
    """The metrics of all pairs in a file; None if a pair does not name any."""
    names: list[str] = []
    for raw in read_raw(str(path), "train"):
        if raw is not None:
            recorded = _recorded(raw.values)
            if recorded is None:
                return None
            names += [name for name in recorded if name not in names]
    return names


def _of_card(path: Path) -> list[str] | None:
    """The metrics in the front matter of an export's card."""
    _, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    values = yaml.safe_load(rest.partition("\n---")[0])
    return _recorded(values)


def _recorded(values: Any) -> list[str] | None:
    recorded = values.get(SELECTED_BY) if isinstance(values, dict) else None
    return [str(name) for name in recorded] if isinstance(recorded, list) else None
