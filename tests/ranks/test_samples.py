"""Translations at evaluations: equal to `generate`, without an effect on training, and resumed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from launch import on_ranks
from runs import DIRECTIONS, LORA, lines, newest, run_recipe, small_recipe
from workers import sampling

ASKED = 7  # of which two ranks translate 4 and 3
EVALUATIONS = [0, 2, 4, 6]
SHARD_ALL = {"stage": 3, "stage3_param_persistence_threshold": 0}
Q_PROJ = {"rank": 4, "alpha": 8, "dropout": 0.05, "target_modules": ["q_proj"]}
CASES: dict[str, dict[str, Any]] = {
    "full zero0": {"stage": 0},
    "full zero3": SHARD_ALL,
    "lora zero2": {"stage": 2},
    "lora, chat, own settings, zero3": SHARD_ALL,
    "bfloat16 zero3": SHARD_ALL,
}


def recipe_of(folder: Path, name: str, zero: dict[str, Any]) -> dict[str, Any]:
    """A recipe of a case; room for two sequences at a time, so that others wait."""
    model = folder / ("model with settings" if "own settings" in name else "model")
    file = folder / f"{name}.json".replace(" ", "_")
    file.write_text(json.dumps({"zero_optimization": zero}))
    prompt = {"prompt_style": "chat"} if "chat" in name else {}
    return {
        "model": {"name_or_path": str(model), "dtype": "float32"}
        | ({"dtype": "bfloat16"} if "bfloat16" in name else {}),
        "data": {"format": "sample", "directions": DIRECTIONS, "eval_fraction": 0.1} | prompt,
        "batch": {"pairs": 8, "tokens_per_rank": 600},
        "train": {"max_steps": 1, "sample_translations": ASKED, "sample_max_tokens": 7},
        "optim": {"learning_rate": 3e-2},
        "checkpoint": {"export": False},
        "logging": {"tensorboard": False},
        "deepspeed": str(file),
    } | ({"lora": Q_PROJ} if "lora" in name else {})


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[list[int]]]]:
    """Answers of each case on two ranks, beside those of `generate`."""
    folder = tmp_path_factory.mktemp("samples")
    small_recipe(folder)
    other = small_recipe(folder / "other").parent / "model"
    settings = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(
        json.dumps(settings | {"repetition_penalty": 1.3})
    )
    other.rename(folder / "model with settings")
    recipes = {name: recipe_of(folder, name, zero) for name, zero in CASES.items()}
    for done in on_ranks(sampling.sample_each, [recipes, str(folder)], ranks=2):
        assert done.code == 0, done.output
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CASES}


@pytest.mark.parametrize("name", [name for name in CASES if "bfloat16" not in name])
def test_answers_equal_those_of_generate(answers: dict[str, Any], name: str) -> None:
    before, after = answers[name]["answers"]
    assert after == answers[name]["expected"] and len(after) == ASKED
    assert before != after


def test_precision_and_settings_of_the_model_count(answers: dict[str, Any]) -> None:
    before = {name: record["answers"][0] for name, record in answers.items()}
    plain = before["full zero0"]
    assert plain == before["full zero3"] == before["lora zero2"]  # B of a new adapter is zero
    assert plain not in (before["bfloat16 zero3"], before["lora, chat, own settings, zero3"])
    assert all(0 < len(answer) <= 8 for answer in before["bfloat16 zero3"])


def samples(output: Path) -> list[dict[str, Any]]:
    file = output / "samples.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def without_scores(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without metrics of translations."""
    return [{k: v for k, v in line.items() if "sample" not in k} for line in lines(output)]


def states(output: Path) -> dict[str, list[int]]:
    """Checksums of all that the files of the newest checkpoint hold, weights and random states."""
    folder = output / "checkpoints" / newest(output)
    return {
        path.relative_to(folder).as_posix(): [
            entry.CRC for entry in zipfile.ZipFile(path).infolist()
        ]
        for path in folder.rglob("*.pt")
    }


def interrupted(event: str, step: int, recipe: Path, output: Path, *arguments: object) -> Any:
    given = [str(a) for a in ("--config", recipe, "--output_dir", output, *arguments)]
    return on_ranks(sampling.train_interrupted, [event, step, *given], ranks=2)


def test_samples_leave_training_as_it_is_and_resume(tmp_path: Path) -> None:
    sections = {"train": {"max_steps": 6}, "checkpoint": {"every_steps": 3, "export": False}}
    recipe = small_recipe(tmp_path, **sections, lora=LORA)
    arguments = ("--train.sample_translations", 3, "--train.sample_max_tokens", 12)
    arguments += ("--train.sample_metrics", "[chrf, bleu]")
    without, whole, other = (tmp_path / name for name in ("without", "whole", "other"))
    assert run_recipe(recipe, without).code == 0
    assert not (without / "samples.jsonl").exists()

    done = run_recipe(recipe, whole, *arguments)
    assert done.code == 0, done.output
    assert "translating 3 held-out source(s) at each evaluation, at most 12 tokens" in done.output
    assert "not every row has a reference" in done.output
    assert done.output.count("against the chosen texts, not references") == len(EVALUATIONS)
    assert without_scores(whole) == lines(without)  # with dropout, so random states count
    assert states(whole) == states(without) and len(states(whole)) > 3
    written = samples(whole)
    assert [line["step"] for line in written] == [step for step in EVALUATIONS for _ in range(3)]
    assert len({line["language_pair"] for line in written[:3]}) == 3
    assert [line["prompt"] for line in written[:3]] == [line["prompt"] for line in written[-3:]]
    held_out = [line for line in lines(whole) if "eval_loss" in line]
    assert all("eval_sample_chrf_to_chosen" in line for line in held_out)

    # Stopped before the first step, which leaves nothing to save.
    done = interrupted("stop", 0, recipe, other, *arguments)
    assert {rank.code for rank in done} == {4} and not (other / "checkpoints").exists()
    assert "before the first step, asked to by SIGTERM. Run the same" in done[0].output
    # Killed between the two files, in the evaluation of a step without a checkpoint.
    first, _ = interrupted("kill", 4, recipe, other, *arguments)
    assert first.code == -9 and samples(other)[-1]["step"] == 4
    # Stopped while it translates, after a step without a checkpoint, which it gets then.
    done = interrupted("stop", 4, recipe, other, *arguments)
    assert {rank.code for rank in done} == {4}, done[0].output
    assert "after step 4 of 6, asked to by SIGTERM; its checkpoint is saved" in done[0].output
    assert newest(other) == "step-00000004" and samples(other)[-1]["step"] == 2
    # Killed after the line of the last evaluation, which shows that translations are written.
    first, _ = interrupted("kill after", 6, recipe, other, *arguments)
    assert first.code == -9
    assert samples(other) == written and lines(other) == lines(whole)
    assert states(other) == states(whole)
