"""The recipe for a user's own pairs: its values, and a run from a file of pairs to an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import save_tiny_model
from launch import main_on_ranks
from repository import ROOT
from runs import lines, small_recipe

from cpo_ds.recipe import load_config

RECIPE = ROOT / "recipes" / "own-pairs.yaml"


def test_its_values_are_for_a_large_model_on_gpus() -> None:
    config, _ = load_config(["--config", "own-pairs"])
    assert config.lora is not None and config.model.adapter is None
    assert (config.optim.learning_rate, config.model.dtype) == (1e-4, "auto")
    assert config.data.format == "pairs" and 0 < config.data.eval_fraction < 0.2
    assert config.train.eval_every_steps and config.checkpoint.every_steps
    assert config.batch.pairs % 8 == 0, "each of eight GPUs has as many pairs as the others"
    assert config.batch.tokens_per_rank >= config.data.max_tokens
    assert config.model.gradient_checkpointing


def test_what_is_to_be_changed_is_marked_and_in_the_readme() -> None:
    marked = [line for line in RECIPE.read_text().splitlines() if "# change this" in line]
    names = [line.split(":")[0].strip() for line in marked]
    assert names == ["name_or_path", "path", "output_dir"]
    config, _ = load_config(["--config", str(RECIPE)])
    readme = (ROOT / "README.md").read_text()
    own = readme[readme.index("## Train on your own pairs") : readme.index("## Recipes")]
    assert "recipes/own-pairs.yaml" in own and "demo.yaml" not in own
    for value in (config.model.name_or_path, config.data.path, config.output_dir):
        assert str(value) in own
    assert "| `own-pairs` |" in readme


def test_unchanged_it_says_which_file_is_not_there(tmp_path: Path) -> None:
    (done,) = main_on_ranks(
        "--config", RECIPE, "--output_dir", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 2 and "Traceback" not in done.output
    assert "my_pairs.jsonl" in done.output or "my-llm" in done.output


def test_it_trains_on_a_file_of_pairs(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    pairs = tmp_path / "pairs.csv"
    rows = "".join(f'"House {n}, in German:", Haus {n}, Maus {n}\n' for n in range(150))
    pairs.write_text(f"prompt,chosen,rejected\n{rows}")
    output = tmp_path / "run"
    (done,) = main_on_ranks(
        "--config", "own-pairs", "--model.name_or_path", model,
        "--data.path", pairs, "--train.max_steps", 2, "--output_dir", output,
    )  # fmt: skip
    assert done.code == 0, done.output
    assert "model.dtype auto: " in done.output
    written = lines(output)
    assert [line["step"] for line in written if "loss" in line] == [1, 2]
    held_out = [line for line in written if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [0, 2] and held_out[0]["eval_pairs"] > 0
    assert (output / "checkpoints" / "step-00000002").is_dir()
    assert (output / "export" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("rate", "is_said"), [(1e-3, False), (1.0, True)])
def test_a_loss_that_rises_is_said_and_a_normal_one_is_not(
    tmp_path: Path, rate: float, is_said: bool
) -> None:
    recipe = small_recipe(
        tmp_path,
        stage=0,
        optim={"learning_rate": rate},
        train={"epochs": 2, "max_steps": 22, "eval_every_steps": None},
        checkpoint={"every_steps": None, "export": False},
    )
    (done,) = main_on_ranks("--config", recipe, "--output_dir", tmp_path / "run")
    assert done.code == 0, done.output
    assert done.output.count("warning: the loss has risen from") == int(is_said), done.output
