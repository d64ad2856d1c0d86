"""Hints for names of settings that are unknown: other trainers' words, and slips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipes import load

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.recipe import SETTINGS
from cpo_ds.settings.other_names import OTHER_NAMES

# A key in the wrong part of a recipe, and the setting that the message must name.
MEANT = {
    "lr": "optim.learning_rate",
    "learning_rate": "optim.learning_rate",
    "train.learning_rate": "optim.learning_rate",
    "optim.lr": "optim.learning_rate",
    "batch_size": "batch.pairs",
    "num_train_epochs": "train.epochs",
    "train.num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "batch.pairs",
    "gradient_accumulation_steps": "batch.pairs",
    "max_length": "data.max_tokens",
    "cutoff_len": "data.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "lora_r": "lora.rank",
    "lora.r": "lora.rank",
    "bf16": "model.dtype",
    "cpo_alpha": "loss.alpha",
    "alpha": "loss.alpha or lora.alpha",
    "warmup_ratio": "optim.warmup_ratio",
    "save_steps": "checkpoint.every_steps",
    "every_steps": "checkpoint.every_steps or logging.every_steps",
    "data.max_stepz": "train.max_steps",
    "learning_rat": "optim.learning_rate",
    "beta": "loss.beta",
    "model.name": "model.name_or_path",
    "loss.type": "loss.name",
    "data.file": "data.path",
    "data.dataset": "data.path",
    "optimizer": "optim",
    "model_name_or_path": "model.name_or_path",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_key_of_a_recipe_names_its_setting(tmp_path: Path, name: str) -> None:
    *sections, key = name.split(".")
    values: dict[str, Any] = {key: 1}
    for section in reversed(sections):
        values = {section: values}
    with pytest.raises(UserError) as caught:
        load(tmp_path, values=values)
    assert f"unknown key {name} (" in str(caught.value)
    assert f" {MEANT[name]}" in str(caught.value)


@pytest.mark.parametrize("name", MEANT)
def test_an_option_names_its_setting(tmp_path: Path, name: str) -> None:
    setting = MEANT[name].replace(" or ", " or --")
    for option in ([f"--{name}", "1"], [f"--{name.replace('_', '-')}=1"]):
        with pytest.raises(UserError) as caught:
            load(tmp_path, *option)
        assert f" --{setting}" in str(caught.value)


def test_names_that_stand_for_nothing_say_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key gpus \(the launcher says how many"):
        load(tmp_path, values={"gpus": 8})


def test_every_other_name_stands_for_a_setting_that_exists() -> None:
    for name, (field, note) in OTHER_NAMES.items():
        assert field in {*SETTINGS, *Config.model_fields} or (field is None and note), name
        assert name not in {dotted.rpartition(".")[2] for dotted in SETTINGS}, name
