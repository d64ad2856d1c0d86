"""The training recipe of each round: the user's, from the last round's export, on its pairs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.recipe import check_keys, parse_config, read_deepspeed_files
from cpo_ds.rounds.layout import Layout
from cpo_ds.rounds.settings import RoundsSettings
from cpo_ds.settings.yaml_file import read_yaml
from cpo_ds.shipped import RECIPES
from cpo_ds.translate.model_choice import ModelChoice

# Settings that a round has for itself; others are the recipe's.
_OF_ROUNDS = ("model.name_or_path", "model.adapter", "data.format", "data.path", "output_dir")


def round_recipes(settings: RoundsSettings, policy: ModelChoice, layout: Layout) -> list[Config]:
    """The recipes of all rounds, the first one's first.

    Each round starts where the last one ended. If that one trained an adapter, the next one
    continues it on the same base; a full model takes the base's place. So a reference model
    (`loss.reference`) is the policy before the round: it moves with the rounds. Raises `UserError`
    for a recipe that cannot be trained so.
    """
    values, source = _user_recipe(settings)
    recipes: list[Config] = []
    base, adapter = policy.model, policy.adapter
    if adapter is None and _section(values, "model").get("adapter_mode") == "merge":
        raise UserError(
            f"{source}: model.adapter_mode is merge, but the policy has no adapter; name it by "
            "policy.adapter, or set model.adapter_mode to continue under train.overrides."
        )
    for number in range(1, settings.rounds + 1):
        own = copy.deepcopy(values)
        model = _section(own, "model") | {"name_or_path": base, "adapter": adapter}
        if number > 1:
            model.pop("adapter_mode", None)  # it is about the adapter that round 1 starts from
        pairs = {"format": "pairs", "path": str(layout.at(number, "pairs") / "pairs.jsonl")}
        own |= {"model": model, "data": _section(own, "data") | pairs}
        own["output_dir"] = str(layout.at(number, "run"))
        recipe = parse_config(own, f"{source}, as trained in round {number}")
        recipes.append(recipe)
        export = str(layout.export(number))
        if recipe.trains_adapter and recipe.model.adapter_mode == "continue":
            adapter = export
        else:
            base, adapter = export, None
    _check(recipes[0], source)
    return recipes


def _check(recipe: Config, source: str) -> None:
    """Raises `UserError` for settings by which a round could not be resumed or gone on from."""
    if recipe.checkpoint.resume != "auto":
        raise UserError(
            f"{source}: checkpoint.resume is {recipe.checkpoint.resume}, but rounds resume their "
            "trainings; leave it out, or set it to auto."
        )
    if not recipe.checkpoint.export:
        raise UserError(
            f"{source}: checkpoint.export is false, but the next round starts from the export; "
            "leave it out, or set it to true."
        )
    read_deepspeed_files(recipe)


def _user_recipe(settings: RoundsSettings) -> tuple[dict[str, Any], str]:
    """The recipe's values with the overrides, and its name for messages. Raises `UserError`."""
    file = RECIPES.find(settings.train.recipe)
    values = read_yaml(Path(file))
    check_keys(values, Config, str(file))
    overrides = _nested(settings.train.overrides)
    check_keys(overrides, Config, "train.overrides")
    for dotted in _OF_ROUNDS:
        section, _, name = dotted.rpartition(".")
        if name in (_section(overrides, section) if section else overrides):
            raise UserError(
                f"train.overrides sets {dotted}, which each round sets for itself; leave it out"
                + ("; policy names the model." if section == "model" else ".")
            )
    source = f"{file}{' and train.overrides' if overrides else ''}"
    own_format = _section(values, "data").get("format", "pairs")
    if own_format != "pairs" and _section(values, "data").get("eval_path"):
        raise UserError(
            f"{source}: data.eval_path has held-out pairs in the format {own_format}, and rounds "
            "train the format pairs; set data.eval_fraction instead."
        )
    return _merged(values, overrides), source


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return dict(section) if isinstance(section, dict) else {}


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `{"optim.learning_rate": 1}` into `{"optim": {"learning_rate": 1}}`."""
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        *sections, name = str(key).split(".")
        inner = _nested(value) if isinstance(value, dict) and not sections else value
        for section in reversed(sections):
            name, inner = section, {name: inner}
        nested = _merged(nested, {name: inner})
    return nested


def _merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others in their place, section by section."""
    merged = dict(values)
    for key, value in more.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if is_section else value
    return merged
