"""Settings: their defaults, and values that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from recipes import MINIMAL, load

from cpo_ds.data.plan import epoch_order
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.settings.objective import LossConfig


def test_defaults_are_the_alma_r_recipe(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.loss.name, config.loss.beta, config.loss.alpha) == ("cpo", 0.1, 1.0)
    assert (config.batch.pairs, config.optim.learning_rate) == (128, 1e-4)
    assert (config.optim.schedule, config.optim.warmup_ratio) == ("inverse_sqrt", 0.01)
    assert (config.data.max_prompt_tokens, config.data.max_tokens) == (256, 512)
    assert config.deepspeed == "zero3" and not config.trains_adapter


def test_settings_are_frozen(tmp_path: Path) -> None:
    config = load(tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        config.loss.beta = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"beta": 0}}, r"loss\.beta: .*greater than 0 \(it is 0\)"),
        ({"loss": {"beta": "big"}}, r"loss\.beta: must be a number .*'big'"),
        ({"loss": {"label_smoothing": 0.5}}, r"loss\.label_smoothing: .*less than 0\.5"),
        ({"loss": {"name": "kto"}}, r"loss\.name: must be one of cpo,"),
        ({"loss": 3}, r"loss: must be a section of fields, like loss\.name"),
        ({"model": {"name_or_path": "m", "dtype": "fp16"}}, r"\(did you mean float16\?\)"),
        ({"batch": {"pairs": 0}}, r"batch\.pairs: .*greater than 0"),
        ({"batch": {"pairs": 2.5}}, r"batch\.pairs: must be a whole number"),
        ({"optim": {"betas": [0.9]}}, r"optim\.betas"),
        (
            {"model": {"name_or_path": "m", "head_chunk_tokens": "x"}},
            r"model\.head_chunk_tokens: must be a whole number or auto \(it is 'x'\)",
        ),
        ({"lora": {"target_modules": 3}}, r"lora\.target_modules: must be a list, .* or a text \("),
        ({"model": {"name_or_path": "m", "quantization": "int8"}}, r"must be nf4 \(it is 'int8'\)"),
        ({"model": {}}, r"model\.name_or_path is missing"),
        ({"data": {"format": "pairs"}}, r"data\.path is required"),
        (
            {"data": {"format": "sample", "path": "x"}},
            r"data\.path is required, except by data\.format: sample, which has none",
        ),
        (
            {"data": {"format": "sample", "eval_fraction": 0.1, "eval_path": "e"}},
            r"data\.eval_fraction or data\.eval_path, not both",
        ),
        ({"model": {"name_or_path": "m", "adapter_mode": "merge"}}, r"names no adapter"),
        ({"data": {"format": "sample", "scorer": "x"}}, r"data\.scorer has no effect"),
        (
            {"data": {"format": "sample", "special_tokens": "plain"}},
            r"data\.special_tokens has no effect with data\.format: sample",
        ),
        (
            {"data": {"format": "sample", "chat_template_kwargs": {"a": 1}}},
            r"data\.chat_template_kwargs has no effect with data\.prompt_style: alma",
        ),
        (
            {"data": {"format": "sample", "template_date": "tomorrow"}},
            r"data\.template_date: must be a day like 2026-01-31, but is 'tomorrow'",
        ),
        ({"train": {"seed": -1}}, r"train\.seed"),
    ],
)
def test_bad_values_are_refused_in_one_line(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"recipe.yaml: .*{message}") as caught:
        load(tmp_path, values=MINIMAL | values)
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_every_accepted_seed_can_order_the_data() -> None:
    largest = 2**32 - 1
    config = parse_config(MINIMAL | {"train": {"seed": largest}}, "test")
    assert len(epoch_order(3, config.train.seed, 0)) == 3
    with pytest.raises(UserError, match=r"train\.seed"):  # numpy has no such stream
        parse_config(MINIMAL | {"train": {"seed": largest + 1}}, "test")


@pytest.mark.parametrize("mode", ["continue", "merge"])
def test_an_adapter_is_continued_or_merged(mode: str) -> None:
    model = {"name_or_path": "m", "adapter": "a", "adapter_mode": mode}
    config = parse_config(MINIMAL | {"model": model}, "test")
    assert config.trains_adapter == config.continues_adapter == (mode == "continue")
    config = parse_config(MINIMAL | {"model": model, "lora": {}}, "test")
    assert config.trains_adapter and config.continues_adapter == (mode == "continue")


MOOT = [
    ("cpo", "gamma", 1.0),
    ("cpo", "arpo_scale", 0.5),
    ("simpo", "alpha", 0.5),
    ("simpo", "nll_reduction", "pair"),
    ("cpo-simpo", "arpo_detach", True),
    ("arpo", "gamma", 1.0),
    ("ipo", "label_smoothing", 0.1),
    ("hinge", "label_smoothing", 0.1),
    ("hinge", "score_margin", 0.1),
    ("ipo", "score_margin", 0.1),
    ("sft", "score_margin", 0.1),
    ("plackett-luce", "score_margin", 0.1),
    ("plackett-luce", "label_smoothing", 0.1),
    ("plackett-luce", "gamma", 1.0),
    ("sft", "beta", 0.5),
    ("sft", "alpha", 0.5),
    ("cpo", "reference", "adapter"),
    ("dpo", "alpha", 0.5),
    ("dpo", "nll_reduction", "pair"),
]


@pytest.mark.parametrize(("name", "field", "value"), MOOT)
def test_a_loss_setting_without_effect_is_refused(name: str, field: str, value: Any) -> None:
    recipe = MINIMAL | {"data": {"format": "pairs", "path": "p.jsonl"}}
    with pytest.raises(UserError, match=rf"loss\.{field} has no effect with loss\.name: {name}"):
        parse_config(recipe | {"loss": {"name": name, field: value}}, "test")
    default = LossConfig.model_fields[field].default
    parse_config(recipe | {"loss": {"name": name, field: default}}, "test")  # a resolved config


@pytest.mark.parametrize(
    ("loss", "needs"),
    [
        ({"name": "plackett-luce"}, r"loss\.name: plackett-luce"),
        ({"name": "dpo", "score_margin": 0.5}, r"loss\.score_margin"),
    ],
)
def test_scores_are_refused_for_rows_without_any(loss: dict[str, Any], needs: str) -> None:
    for data in ({"format": "sample"}, {"format": "x-alma", "path": "x.jsonl"}):
        message = rf"{needs} needs the scores of texts.*data\.format: {data['format']} have none"
        with pytest.raises(UserError, match=message):
            parse_config(MINIMAL | {"loss": loss, "data": data}, "test")
    for format in ("pairs", "triplets", "alma-r"):
        data = {"format": format, "path": "x.jsonl"}
        assert parse_config(MINIMAL | {"loss": loss, "data": data}, "test").loss.needs_scores
    with pytest.raises(UserError, match=r"loss\.score_margin"):
        parse_config(MINIMAL | {"loss": {"score_margin": -0.5}}, "test")


def test_simpo_with_an_nll_term_is_pointed_to_cpo_simpo() -> None:
    with pytest.raises(UserError, match="cpo-simpo is simpo with an NLL term"):
        parse_config(MINIMAL | {"loss": {"name": "simpo", "alpha": 0.5}}, "test")
