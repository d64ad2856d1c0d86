"""The margins of held-out pairs in a run's folder: as logged, and training as without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preference_data import write
from runs import lines, run_recipe, small_recipe

from cpo_ds.data.prompts import alma_prompt
from cpo_ds.storage.held_out_file import read_margins


def pair(number: int) -> dict[str, str]:
    prompt = alma_prompt(f"Source {number}.", "en", "de")
    texts = {"chosen": f"Gut {number * 7}.", "rejected": f"Schlecht {number}, {number % 3}."}
    return {"direction": "en-de", "prompt": prompt} | texts


def train_on_files(folder: Path, output: str, *options: str, **data: Any) -> Path:
    settings = {"format": "pairs", "path": str(folder / "train.jsonl"), "directions": None}
    recipe = small_recipe(folder / "recipe", data=settings | {"eval_fraction": 0.0} | data)
    done = run_recipe(recipe, folder / output, *options)
    assert done.code == 0, done.output
    return folder / output


def test_margins_are_kept_and_change_no_number_of_training(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [pair(number) for number in range(40)])
    write(tmp_path / "held.jsonl", [pair(number) for number in range(100, 107)])
    held_out = {"eval_path": str(tmp_path / "held.jsonl")}
    plain = train_on_files(tmp_path, "plain")
    evaluated = train_on_files(tmp_path, "evaluated", **held_out)

    # Training is the same to the last bit, and a run without held-out pairs keeps none.
    assert [line for line in lines(evaluated) if "loss" in line] == lines(plain)
    assert not (plain / "held_out_pairs.jsonl").exists()

    # Each pair stands twice, and the means are those of the log.
    kept = read_margins(evaluated)
    logged = {line["step"]: line for line in lines(evaluated) if "eval_loss" in line}
    origins = [f"{tmp_path}/held.jsonl:{number}" for number in range(1, 8)]
    assert [margin.origin for margin in kept] == 2 * origins
    assert [margin.step for margin in kept] == 7 * [0] + 7 * [5]
    for step in (0, 5):
        margins = [margin.reward_margin for margin in kept if margin.step == step]
        assert sum(margins) / 7 == pytest.approx(logged[step]["eval_reward_margin"], rel=1e-12)

    # A run that goes on from a checkpoint writes the same file.
    again = f"--checkpoint.resume={evaluated / 'checkpoints' / 'step-00000003'}"
    text = (evaluated / "held_out_pairs.jsonl").read_text()
    names = {tuple(json.loads(line)) for line in text.splitlines()}
    assert names == {("step", "origin", "direction", "reward_margin")}  # and no texts
    train_on_files(tmp_path, "evaluated", again, **held_out)
    assert (evaluated / "held_out_pairs.jsonl").read_text() == text
