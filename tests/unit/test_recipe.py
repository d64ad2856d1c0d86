"""Recipes: the file, and the command line over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from recipes import MINIMAL, load, recipe

from cpo_ds.errors import UserError
from cpo_ds.recipe import load_config, parse_config

HOLDS_OUT = ["--data.eval_fraction", "0.1"]
# Every setting: its text on the command line, its value then, and what else it needs to make sense.
OVERRIDES: dict[str, tuple[str, Any, list[str]]] = {
    "model.name_or_path": ("folder/model", "folder/model", []),
    "model.adapter": ("folder/adapter", "folder/adapter", []),
    "model.adapter_mode": ("merge", "merge", ["--model.adapter", "a"]),
    "model.dtype": ("float32", "float32", []),
    "model.attention": ("sdpa", "sdpa", []),
    "model.kernels": ("eager", "eager", []),
    "model.quantization": ("nf4", "nf4", ["--lora.rank", "4"]),
    "model.gradient_checkpointing": ("true", True, []),
    "model.head_chunk_tokens": ("7", 7, []),
    "data.format": ("pairs", "pairs", ["--data.path", "p.jsonl"]),
    "data.path": ("p.jsonl", "p.jsonl", ["--data.format", "pairs"]),
    "data.split": ("validation", "validation", []),
    "data.directions": ("[en-de, is-en]", ["en-de", "is-en"], []),
    "data.languages": ("{bn: Bengali}", {"bn": "Bengali"}, []),
    "data.scorer": ("xcomet", "xcomet", ["--data.format", "triplets", "--data.path", "p"]),
    "data.selected_by": ("[kiwi, chrf]", ["kiwi", "chrf"], []),
    "data.prompt_style": ("chat", "chat", []),
    "data.add_bos": ("always", "always", []),
    "data.chat_template_kwargs": ("{a: 1}", {"a": 1}, ["--data.prompt_style", "chat"]),
    "data.template_date": ("2026-01-31", "2026-01-31", []),
    "data.special_tokens": ("parsed", "parsed", ["--data.format", "pairs", "--data.path", "p"]),
    "data.max_prompt_tokens": ("100", 100, []),
    "data.max_tokens": ("200", 200, []),
    "data.eval_fraction": ("0.25", 0.25, []),
    "data.eval_path": ("e.jsonl", "e.jsonl", []),
    "loss.name": ("arpo", "arpo", []),
    "loss.beta": ("0.2", 0.2, []),
    "loss.alpha": ("0", 0.0, []),
    "loss.label_smoothing": ("0.1", 0.1, []),
    "loss.nll_reduction": ("pair", "pair", []),
    "loss.gamma": ("-0.5", -0.5, ["--loss.name", "simpo"]),
    "loss.score_margin": ("0.5", 0.5, ["--data.format", "pairs", "--data.path", "p.jsonl"]),
    "loss.arpo_scale": ("0.8", 0.8, ["--loss.name", "arpo"]),
    "loss.arpo_rate": ("0.3", 0.3, ["--loss.name", "arpo"]),
    "loss.arpo_floor": ("0", 0.0, ["--loss.name", "arpo"]),
    "loss.arpo_detach": ("true", True, ["--loss.name", "arpo"]),
    "loss.reference": ("precomputed", "precomputed", ["--loss.name", "dpo"]),
    "loss.reference_cache": ("c", "c", ["--loss.name", "dpo", "--loss.reference", "precomputed"]),
    "lora": ("none", None, []),
    "data.cache": ("c", "c", []),
    "lora.rank": ("8", 8, []),
    "lora.alpha": ("16", 16.0, []),
    "lora.dropout": ("0", 0.0, []),
    "lora.target_modules": ("all-linear", "all-linear", []),
    "optim.learning_rate": ("2e-5", 2e-5, []),
    "optim.schedule": ("cosine", "cosine", []),
    "optim.warmup_ratio": ("0.1", 0.1, []),
    "optim.weight_decay": ("0", 0.0, []),
    "optim.betas": ("[0.8, 0.95]", (0.8, 0.95), []),
    "optim.eps": ("1e-6", 1e-6, []),
    "optim.states": ("bfloat16", "bfloat16", []),
    "optim.max_grad_norm": ("0", 0.0, []),
    "batch.pairs": ("32", 32, []),
    "batch.tokens_per_rank": ("999", 999, []),
    "batch.share_prefix": ("none", "none", []),
    "train.epochs": ("3", 3, []),
    "train.max_steps": ("5", 5, []),
    "train.seed": ("0", 0, []),
    "train.deterministic": ("true", True, []),
    "train.eval_every_steps": ("4", 4, []),
    "train.sample_translations": ("3", 3, HOLDS_OUT),
    "train.sample_max_tokens": ("64", 64, []),
    "train.sample_metrics": (
        "[chrf, bleu]",
        ["chrf", "bleu"],
        ["--train.sample_translations", "3", *HOLDS_OUT],
    ),
    "train.max_hours": ("0.5", 0.5, []),
    "train.stall_minutes": ("none", None, []),
    "checkpoint.every_steps": ("9", 9, []),
    "checkpoint.every_minutes": ("2.5", 2.5, []),
    "checkpoint.keep_last": ("1", 1, []),
    "checkpoint.resume": ("never", "never", []),
    "checkpoint.on_damage": ("stop", "stop", []),
    "checkpoint.on_save_error": ("stop", "stop", []),
    "checkpoint.in_background": ("true", True, []),
    "checkpoint.export": ("false", False, []),
    "checkpoint.verify_export": ("false", False, []),
    "logging.every_steps": ("2", 2, []),
    "logging.tensorboard": ("false", False, []),
    "logging.trackers": ("[wandb, trackio]", ["wandb", "trackio"], []),
    "deepspeed": ("ds.json", "ds.json", []),
    "output_dir": ("runs/x", "runs/x", []),
}


def value_of(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        config = getattr(config, name)
    return config


def leaves(section: BaseModel, prefix: str = "") -> set[str]:
    """Dotted names of all settings, read from the models and not from the parser."""
    names: set[str] = set()
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        nested = isinstance(value, BaseModel)
        names |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name}
        assert field.description or nested, f"{name} is not documented"
    return names


def all_settings() -> set[str]:
    with_lora = parse_config(MINIMAL | {"lora": {}}, "test")
    return leaves(with_lora) | {"lora"}


def test_the_table_above_has_every_setting() -> None:
    assert set(OVERRIDES) == all_settings()


@pytest.mark.parametrize("dotted", OVERRIDES)
@pytest.mark.parametrize("spelling", ["field value", "field=value", "hyphens"])
def test_every_setting_is_overridden_on_the_command_line(
    tmp_path: Path, dotted: str, spelling: str
) -> None:
    text, expected, others = OVERRIDES[dotted]
    name = dotted.replace("_", "-") if spelling == "hyphens" else dotted
    given = [f"--{name}={text}"] if spelling == "field=value" else [f"--{name}", text]
    config = load(tmp_path, *given, *others)
    assert value_of(config, dotted) == expected
    assert type(value_of(config, dotted)) is type(expected)
    if dotted not in ("lora", "model.name_or_path", "data.format"):
        unchanged = parse_config(MINIMAL | {"lora": {}}, "test")
        assert value_of(unchanged, dotted) != expected, (
            "the test sets the default: it shows nothing"
        )


def test_overrides_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    values = MINIMAL | {"loss": {"beta": 0.3, "alpha": 2.0}, "lora": {"rank": 4, "alpha": 8}}
    config = load(tmp_path, "--loss.beta", "0.2", "--lora.rank", "64", values=values)
    assert (config.loss.beta, config.loss.alpha) == (0.2, 2.0)
    assert config.lora is not None and (config.lora.rank, config.lora.alpha) == (64, 8.0)
    assert config.trains_adapter


def test_lora_none_switches_a_recipes_lora_off(tmp_path: Path) -> None:
    values = MINIMAL | {"lora": {"rank": 4}}
    assert load(tmp_path, "--lora", "none", values=values).lora is None
    assert load(tmp_path, values=MINIMAL | {"lora": "none"}).lora is None
    assert not load(tmp_path, "--lora=none", values=values).trains_adapter
    default = load(tmp_path, "--lora.rank", "16").lora
    assert default is not None and default.target_modules == ["down_proj"]


@pytest.mark.parametrize("whole", ["none", "null", "{rank: 8}"])
@pytest.mark.parametrize("field", [["--lora.dropout=0"], ["--lora.rank", "4"]])
@pytest.mark.parametrize("section_first", [True, False])
def test_a_section_and_a_field_of_it_on_the_command_line_contradict(
    tmp_path: Path, whole: str, field: list[str], section_first: bool
) -> None:
    section = [f"--lora={whole}"]
    argv = [*section, *field] if section_first else [*field, *section]
    with pytest.raises(UserError, match=r"--lora sets .*--lora\.(dropout|rank) .* leave one"):
        load(tmp_path, *argv, values=MINIMAL | {"lora": {"rank": 2}})


def test_the_word_none_is_a_value_where_the_setting_has_it(tmp_path: Path) -> None:
    values = MINIMAL | {"batch": {"share_prefix": "none"}}
    assert load(tmp_path, values=values).batch.share_prefix == "none"


def test_yaml_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 would read `1e-4`, which everyone writes, as a string."""
    text = yaml.safe_dump(MINIMAL) + "optim:\n  learning_rate: 3e-4\n  eps: 1E-7\n"
    config = load(tmp_path, values=text)
    assert (config.optim.learning_rate, config.optim.eps) == (3e-4, 1e-7)


def test_launcher_arguments_and_verbose(tmp_path: Path) -> None:
    path = str(recipe(tmp_path))
    _, arguments = load_config(["--local_rank=1", "--config", path, "--verbose"])
    assert arguments.verbose
    assert not load_config(["--config", path])[1].verbose


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"los": {}}, r"unknown key los \(did you mean loss\?\)"),
        ({"loss": {"bta": 1}}, r"unknown key loss\.bta \(did you mean beta\?\)"),
        (
            {"lora": {"target_module": "x"}},
            r"unknown key lora\.target_module \(.* target_modules\?",
        ),
        ({"zzzz": 1}, r"unknown key zzzz; docs"),
        ({1: 2}, r"unknown key 1"),
    ],
)
def test_unknown_key_in_the_file_names_file_and_closest(
    tmp_path: Path, values: Any, message: str
) -> None:
    with pytest.raises(UserError, match=f"recipe.yaml: {message}"):
        load(tmp_path, values=MINIMAL | values)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--loss.bta", "1"], r"--loss\.bta .*did you mean --loss\.beta\?"),
        (["--loss.bta=1"], r"did you mean --loss\.beta\?"),
        (["--ouput-dir", "x"], r"did you mean --output_dir\?"),
        (["--batch.pair", "1"], r"did you mean --batch\.pairs\?"),  # no silent abbreviations
        (["stray"], r"unknown argument stray"),
    ],
)
def test_unknown_argument_names_the_closest(tmp_path: Path, argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "add --config FILE"),
        (["--config", "no/such.yaml"], "there is no recipe no/such.yaml"),
    ],
)
def test_missing_recipe(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(argv)


def test_help_lists_every_setting_with_default_and_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    entries = {e.split()[0]: e for e in text.split(" --")[1:] if "[" in e and "]" in e}
    assert set(entries) - {"config"} == all_settings()
    assert "temperature of the preference term [float, default 0.1]" in entries["loss.beta"]
    assert (
        "objective [cpo|simpo|" in entries["loss.name"] and "default cpo]" in entries["loss.name"]
    )
    assert "[str, required]" in entries["model.name_or_path"]
    assert all(len(entry.split("[")[0].split()) > 2 for entry in entries.values())


def test_a_resolved_configuration_loads_again(tmp_path: Path) -> None:
    """A run saves its settings as a recipe."""
    config = load(tmp_path, "--lora.rank", "8", "--loss.name", "simpo", "--optim.eps", "1e-6")
    assert load(tmp_path, values=config.model_dump(mode="json")) == config
