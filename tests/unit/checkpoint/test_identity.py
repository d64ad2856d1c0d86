"""A checkpoint of another run is refused by what differs; harmless changes are taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpo_ds.checkpoint.identity import changed_settings, check_identity
from cpo_ds.checkpoint.manifest import Manifest, read_manifest, write_manifest
from cpo_ds.config import Config
from cpo_ds.engine.settings import DeepSpeedSettings
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config

RECIPE: dict[str, Any] = {
    "model": {"name_or_path": "m"},
    "data": {"format": "alma-r", "path": "p.jsonl", "max_tokens": 64, "eval_fraction": 0.1},
    "lora": {"rank": 2, "target_modules": ["q_proj", "down_proj"]},
}
BASE = {"hidden_size": 32, "rope_parameters": {"rope_theta": 1e4}, "transformers": "5.1"}
TOKENIZER = {"tokenizer": "aaaa", "chat template": "bbbb"}


def recipe(**changes: Any) -> Config:
    values = {section: RECIPE.get(section, {}) | fields for section, fields in changes.items()}
    return parse_config(RECIPE | values, "test")


def identity(config: Config, **changes: Any) -> dict[str, Any]:
    values = {
        "model shape": "1111",
        "base": BASE,
        "precision": config.model.dtype,
        "LoRA": config.lora.model_dump(mode="json") if config.lora else None,
        "loss": {"name": "cpo", "beta": 0.1},
        "training pairs (fingerprint)": "cccc",
        "pairs per step": 128,
        "seed": config.train.seed,
    }
    return values | {name.replace("_", " "): value for name, value in changes.items()}


def manifest(config: Config, **changes: Any) -> Manifest:
    configuration = config.model_dump(mode="json")
    values = {"identity": identity(config), "configuration": configuration, "tokenizer": TOKENIZER}
    return Manifest(step=1, ranks=1, zero_stage=0, **values | changes)


OTHER_PAIRS = {"training pairs (fingerprint)": "dddd"}


def refused(
    saved: Manifest, now: dict[str, Any], config: Config, tokenizer: dict[str, str] = TOKENIZER
) -> str:
    with pytest.raises(UserError) as caught:
        check_identity(Path("runs/x/step-1"), saved, now, config, tokenizer)
    message = str(caught.value)
    assert message.startswith("the checkpoint runs/x/step-1 is of another run: ")
    assert "checkpoint.resume: restart" in message
    return message


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    config = recipe()
    write_manifest(tmp_path, manifest(config))
    check_identity(tmp_path, read_manifest(tmp_path), identity(config), config, TOKENIZER)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch": {"share_prefix": "none"}}, "batch.share_prefix is 'common', here it is 'none'"),
        ({"data": {"eval_fraction": 0.2}}, "data.eval_fraction is 0.1, here it is 0.2"),
        ({"data": {"max_tokens": 32}}, "data.max_tokens is 64, here it is 32"),
        ({"data": {"path": "q.jsonl"}}, "data.path is 'p.jsonl', here it is 'q.jsonl'"),
        ({"data": {"directions": ["en-de"]}}, "data.directions is None, here it is ['en-de']"),
        ({"data": {"languages": {"bn": "B"}}}, "data.languages is {}, here it is {'bn': 'B'}"),
        ({"data": {"prompt_style": "chat"}}, "data.prompt_style is 'alma', here it is 'chat'"),
        ({"train": {"seed": 7}}, "train.seed is 42, here it is 7"),
    ],
)
def test_other_pairs_by_the_setting_that_made_them(changes: Any, reason: str) -> None:
    saved, config = manifest(recipe()), recipe(**changes)
    message = refused(saved, identity(config) | OTHER_PAIRS, config)
    assert f"its training pairs are others, since {reason}" in message
    assert "cccc" not in message and "dddd" not in message


def test_several_settings_are_all_named() -> None:
    config = recipe(data={"max_tokens": 32}, batch={"share_prefix": "prompt"})
    message = refused(manifest(recipe()), identity(config) | OTHER_PAIRS, config)
    assert "data.max_tokens is 64, here it is 32 and batch.share_prefix is" in message


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (TOKENIZER | {"tokenizer": "x"}, "since the tokenizer of model.name_or_path was changed."),
        (TOKENIZER | {"chat template": "x"}, "since the chat template of model.name_or_path was"),
        (TOKENIZER, "since the content of data.path (p.jsonl) was changed"),
    ],
)
def test_other_pairs_with_the_same_settings(tokenizer: dict[str, str], reason: str) -> None:
    config = recipe()
    now = identity(config) | OTHER_PAIRS
    assert reason in refused(manifest(config), now, config, tokenizer)


def test_an_older_checkpoint_without_fingerprints_of_the_tokenizer() -> None:
    config = recipe()
    message = refused(manifest(config, tokenizer={}), identity(config) | OTHER_PAIRS, config)
    assert "data.path (p.jsonl), or the tokenizer or its chat template, was changed" in message


def test_a_setting_that_the_checkpoint_does_not_know_is_no_reason() -> None:
    saved = manifest(recipe())
    data = {k: v for k, v in saved.configuration["data"].items() if k != "languages"}
    saved = replace(saved, configuration=saved.configuration | {"data": data})
    config = recipe(data={"max_tokens": 32})
    message = refused(saved, identity(config) | OTHER_PAIRS, config)
    assert "languages" not in message and "max_tokens is 64" in message


# The base.


def test_keys_of_the_base_by_name_and_value() -> None:
    config = recipe()
    base = BASE | {"hidden_size": 48, "rope_parameters": {"rope_theta": 1e6}}
    message = refused(manifest(config), identity(config, base=base, model_shape="2222"), config)
    assert "hidden_size in the config.json of model.name_or_path is 32, here it is 48" in message
    assert "rope_parameters in the config.json of model.name_or_path is {'rope_theta'" in message
    assert "1111" not in message


def test_a_new_key_counts_unless_another_version_of_transformers_brought_it() -> None:
    config = recipe()
    grown = BASE | {"sliding_window": 7}
    assert "sliding_window in" in refused(manifest(config), identity(config, base=grown), config)
    updated = identity(config, base=grown | {"transformers": "5.2"}, model_shape="2222")
    check_identity(Path("x"), manifest(config), updated, config, TOKENIZER)
    other = identity(config, base=grown | {"transformers": "5.2", "hidden_size": 48})
    assert "hidden_size in" in refused(manifest(config), other, config)


def test_an_older_checkpoint_knows_the_base_by_a_fingerprint() -> None:
    config = recipe()
    old = {name: value for name, value in identity(config).items() if name != "base"}
    check_identity(Path("x"), manifest(config, identity=old), identity(config), config, TOKENIZER)
    message = refused(manifest(config, identity=old), identity(config, model_shape="2222"), config)
    assert "its model shape is '1111', here it is '2222'" in message


# The rest.


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("precision", "float32", "its precision (model.dtype) is 'bfloat16', here it is 'float32'"),
        ("seed", 1, "its seed (train.seed) is 42, here it is 1"),
        ("pairs per step", 4, "its pairs per step (batch.pairs) is 128, here it is 4"),
        ("loss", {"name": "cpo", "beta": 0.2}, "its loss.beta is 0.1, here it is 0.2"),
        ("LoRA", None, "its LoRA is {'rank': 2"),
    ],
)
def test_other_differences_name_the_setting(name: str, value: Any, said: str) -> None:
    config = recipe()
    assert said in refused(manifest(config), identity(config) | {name: value}, config)


@pytest.mark.parametrize(
    "modules", [["down_proj", "q_proj"], ["q_proj", "down_proj", "q_proj"], {"q_proj", "down_proj"}]
)
def test_the_order_of_adapted_modules_means_nothing(modules: Any) -> None:
    config = recipe(lora={"rank": 2, "target_modules": modules})
    check_identity(Path("x"), manifest(recipe()), identity(config), config, TOKENIZER)
    settings = DeepSpeedSettings.__new__(DeepSpeedSettings)
    object.__setattr__(settings, "file", {})
    assert changed_settings(manifest(recipe()), config, settings) == []


@pytest.mark.parametrize("modules", [["q_proj"], ["q_proj", "up_proj"], "all-linear"])
def test_other_adapted_modules_are_another_run(modules: Any) -> None:
    config = recipe(lora={"rank": 2, "target_modules": modules})
    message = refused(manifest(recipe()), identity(config), config)
    assert "its LoRA.target_modules is ['down_proj', 'q_proj'], here it is" in message
