"""A loss or gradient that is not finite stops the run before it touches the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import save_tiny_model, tiny_tokenizer
from launch import deepspeed, on_ranks, write_recipe
from preference_data import write
from workers import training

from cpo_ds.data.plan import step_indices

PAIRS, STEPS, POISONED_STEP = 4, 4, 3
SEED = 42
STAGES = {0: "ds_configs/zero0.json", 2: "ds_configs/zero2.json", 3: "ds_configs/zero3.json"}
LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that overflow, and pairs of which one has the token that poisons a model."""
    folder = tmp_path_factory.mktemp("non-finite")
    (letter,) = tiny_tokenizer()("Q", add_special_tokens=False)["input_ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny_model(folder / "model"))
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        # What attention adds does not change, but the gradient of o_proj is 1e36 times as large.
        attention.v_proj.weight *= 1e36
        attention.o_proj.weight *= 1e-36
        model.save_pretrained(folder / "steep")
        attention.v_proj.weight *= 1e-36
        attention.o_proj.weight *= 1e36
        model.get_input_embeddings().weight[letter] = torch.inf
        model.save_pretrained(folder / "poisoned")
    for name in ("steep", "poisoned"):
        tiny_tokenizer().save_pretrained(folder / name)
    rows = [
        {"prompt": f"say {n} ->", "chosen": f" it is {n}", "rejected": f" no {n}"}
        for n in range(PAIRS * STEPS)
    ]
    rows[poisoned_row()]["rejected"] = " Q"
    write(folder / "pairs.jsonl", rows)
    return folder


def poisoned_row() -> int:
    return int(step_indices(PAIRS * STEPS, PAIRS, SEED, POISONED_STEP - 1)[1])


def recipe(inputs: Path, model: str, stage: int, dtype: str = "float32", **more: Any) -> dict:
    return {
        "model": {"name_or_path": str(inputs / model), "dtype": dtype},
        "data": {"format": "pairs", "path": str(inputs / "pairs.jsonl")},
        "batch": {"pairs": PAIRS, "tokens_per_rank": 64},
        "train": {"seed": SEED},
        "logging": {"tensorboard": False},
        "checkpoint": {"export": False},
        "deepspeed": STAGES[stage],
        **more,
    }


POISONED = {
    f"{kind}-{dtype}-{stage}": ("poisoned", stage, dtype, more)
    for kind, more in (("full", {}), ("lora", {"lora": LORA}))
    for dtype in ("float32", "bfloat16")
    for stage in STAGES
    if kind == "full" or stage == 3
}
STEEP_LOSS = {"loss": {"beta": 1e4}}
STEEP = {f"steep-{stage}": ("steep", stage, "float32", STEEP_LOSS) for stage in STAGES}
FINE = {f"fine-{stage}": ("model", stage, "float32", {}) for stage in STAGES}


@pytest.fixture(scope="module")
def outcomes(inputs: Path) -> dict[str, dict[str, Any]]:
    """Case -> the error of a run on two ranks, and the changes to its weights."""
    recipes = {
        name: recipe(inputs, model, stage, dtype, **more)
        for name, (model, stage, dtype, more) in (POISONED | STEEP | FINE).items()
    }
    folder = inputs / "runs"
    for done in on_ranks(training.stop_each, [recipes, str(folder)], ranks=2):
        assert done.code == 0, done.output
    by_case = {}
    for name in recipes:
        report = folder / name / "non_finite.json"
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        by_case[name] = json.loads((folder / f"{name}.json").read_text()) | {
            "report": json.loads(report.read_text()) if report.exists() else None,
            "logged steps": [json.loads(line)["step"] for line in lines],
        }
    return by_case


def origins(outcome: dict[str, Any]) -> set[str]:
    return {Path(pair["origin"]).name for pair in outcome["report"]["pairs"]}


@pytest.mark.parametrize("name", POISONED)
def test_a_pair_whose_loss_is_not_finite_is_named(outcomes: Any, name: str) -> None:
    outcome = outcomes[name]
    assert outcome["refused"] == 1 and outcome["changed by a step"]
    assert not outcome["changed after refusal"]
    assert outcome["logged steps"] == [1, 2]
    report, guilty = outcome["report"], f"pairs.jsonl:{poisoned_row() + 1}"
    assert (report["step"], report["what"]) == (POISONED_STEP, "loss")
    assert origins(outcome) == {guilty}
    for part in (f"step {POISONED_STEP}:", guilty, "non_finite.json"):
        assert part in outcome["error"]


@pytest.mark.parametrize("name", STEEP)
def test_a_gradient_that_is_not_finite_stops_too(outcomes: Any, name: str) -> None:
    outcome = outcomes[name]
    assert outcome["refused"] == 1 and not outcome["changed after refusal"]
    assert not outcome["changed by a step"] and outcome["logged steps"] == []
    assert (outcome["report"]["step"], outcome["report"]["what"]) == (1, "gradient")
    first = step_indices(PAIRS * STEPS, PAIRS, SEED, 0)
    assert origins(outcome) == {f"pairs.jsonl:{index + 1}" for index in first}


@pytest.mark.parametrize("name", FINE)
def test_the_same_pairs_train_on_a_sound_model(outcomes: Any, name: str) -> None:
    outcome = outcomes[name]
    assert outcome["refused"] == 0 and "error" not in outcome and outcome["report"] is None
    assert outcome["logged steps"] == [1, 2, 3, 4] and outcome["changed by a step"]


def test_the_launcher_ends_with_exit_code_3_and_one_paragraph(inputs: Path) -> None:
    values = recipe(inputs, "poisoned", 3, output_dir=str(inputs / "launched"))
    done = deepspeed("--config", write_recipe(inputs / "launched", values))
    assert done.code == 3, done.output
    assert done.output.count("cpo_ds: stopped: step 3: the loss is not finite") == 1
    assert "Traceback" not in done.output
    lines = (inputs / "launched" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
