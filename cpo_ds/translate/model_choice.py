"""Finds the model, the adapter and the settings of prompts that `--model` stands for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config

_BASE = "base_model_name_or_path"


@dataclass(frozen=True)
class ModelChoice:
    """A base model with its adapter, and the recipe of the run that trained it, if known."""

    model: str
    adapter: str | None = None
    recipe: Config | None = None
    recipe_file: Path | None = None

    @property
    def quantization(self) -> str | None:
        """The quantization of the base under which the adapter was trained."""
        return self.recipe.model.quantization if self.recipe and self.adapter else None


def choose_model(name: str, adapter: str | None) -> ModelChoice:
    """What `name` stands for: a base, an adapter, an export, a run's folder, or a hub name.

    Raises `UserError` for a run without an export, a checkpoint, an adapter whose base is unknown,
    and two adapters.
    """
    folder = Path(name)
    if not folder.is_dir():
        return _on_hub(name, adapter)
    if _is_run(folder):
        folder = _export_of(folder)
    elif folder.name.startswith("step-") and folder.parent.name == "checkpoints":
        run = folder.parent.parent
        raise UserError(
            f"{name} is a checkpoint; make an export of it (cpo-ds export {run} --checkpoint "
            f"{folder.name}) and give that."
        )
    recipe_file = _recipe_beside(folder)
    recipe = None if recipe_file is None else _read_recipe(recipe_file)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        if adapter is not None:
            raise UserError(f"{folder} is an adapter, and so is --adapter {adapter}; give one.")
        base = _base_of(folder / "adapter_config.json")
        return ModelChoice(base, str(folder), recipe, recipe_file)
    return ModelChoice(str(folder), adapter, recipe, recipe_file)


def _on_hub(name: str, adapter: str | None) -> ModelChoice:
    """A name of the hub: an adapter's repository stands for its base with it."""
    from huggingface_hub import try_to_load_from_cache
    from transformers.utils import cached_file

    from cpo_ds.storage.hub_names import looks_like_path

    if adapter is not None or looks_like_path(name) or Path(name).exists():
        return ModelChoice(name, adapter)
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return ModelChoice(name)
    try:
        if cached_file(name, "config.json", _raise_exceptions_for_missing_entries=False):
            return ModelChoice(name)
        settings = cached_file(
            name, "adapter_config.json", _raise_exceptions_for_missing_entries=False
        )
    except (OSError, ValueError):  # loading the model says what is wrong
        return ModelChoice(name)
    return ModelChoice(_base_of(Path(settings)), name) if settings else ModelChoice(name)


def _is_run(folder: Path) -> bool:
    """Whether a folder is the output folder of a run."""
    has_model = (folder / "config.json").exists() or (folder / "adapter_config.json").exists()
    return not has_model and (folder / "config.yaml").is_file()


def _export_of(run: Path) -> Path:
    """The export in a run's folder. Raises `UserError` if there is none."""
    if (run / "export").is_dir():
        return run / "export"
    others = sorted(path.name for path in run.glob("export-*") if path.is_dir())
    more = f" It has {', '.join(others)}, which can be given by name." if others else ""
    raise UserError(
        f"the run in {run} has no export; make one of its newest checkpoint: cpo-ds export {run}."
        f"{more}"
    )


def _recipe_beside(export: Path) -> Path | None:
    """The recipe of the run whose export a folder is."""
    file = export.absolute().parent / "config.yaml"
    return file if export.absolute().name.startswith("export") and file.is_file() else None


def _read_recipe(file: Path) -> Config:
    """A run's recipe. Raises `UserError` if it cannot be read."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({error}); mend or move it.") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no settings of a run; mend or move it.")
    return parse_config(values, str(file))


def _base_of(file: Path) -> str:
    """The base model that an adapter's settings name. Raises `UserError` if they name none."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); get that file again.") from None
    base = settings.get(_BASE) if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{file} does not name the adapter's base model ({_BASE}); give the base as --model "
            "and the adapter as --adapter."
        )
    return base
