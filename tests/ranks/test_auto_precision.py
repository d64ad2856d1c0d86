"""`model.dtype: auto` in runs: one precision for all ranks, written down, kept by a resume."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from launch import on_ranks
from runs import LORA, lines, newest, run_recipe, small_recipe
from workers import precision as worker

from cpo_ds.model.precision import device_precision

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


def recipe_of(folder: Path) -> Path:
    return small_recipe(folder, model={"dtype": "auto"}, lora=LORA, train={"max_steps": 2})


def test_a_run_takes_the_processors_precision_and_writes_it_down(tmp_path: Path) -> None:
    recipe, output = recipe_of(tmp_path), tmp_path / "run"
    dtype, reason = device_precision(torch.device("cpu"))
    done = run_recipe(recipe, output)
    assert done.code == 0, done.output
    line = f"model.dtype auto: {dtype} ({reason})"
    assert line in done.output and line in (output / "logs" / "rank_0.txt").read_text()
    assert f"with cpo in {dtype} on 2 rank(s)" in done.output
    assert yaml.safe_load((output / "config.yaml").read_text())["model"]["dtype"] == dtype
    saved = output / "checkpoints" / newest(output) / "manifest.json"
    assert json.loads(saved.read_text())["identity"]["precision"] == dtype

    # The same run with the precision by name: it goes on from these checkpoints, to equal numbers.
    named = run_recipe(recipe, output, "--model.dtype", dtype, "--train.max_steps", "3")
    assert named.code == 0 and "model.dtype auto" not in named.output, named.output
    other = run_recipe(recipe, output, "--model.dtype", OTHER[dtype], "--train.max_steps", "4")
    assert other.code == 2 and f"its precision (model.dtype) is '{dtype}'" in other.output, (
        other.output
    )
    again = run_recipe(recipe, tmp_path / "again", "--model.dtype", dtype, "--train.max_steps", "2")
    assert again.code == 0 and lines(tmp_path / "again")[:2] == lines(output)[:2]


def test_ranks_with_unlike_processors_train_in_float32(tmp_path: Path) -> None:
    recipe, output = recipe_of(tmp_path), tmp_path / "run"
    arguments = ["--config", str(recipe), "--output_dir", str(output), "--train.max_steps", "1"]
    first, second = on_ranks(worker.train_on_unlike_processors, arguments, ranks=2)
    assert first.code == second.code == 0, first.output + second.output
    assert "model.dtype auto: float32 (on host " in first.output
    assert "no fast instructions for bfloat16" in first.output
    assert yaml.safe_load((output / "config.yaml").read_text())["model"]["dtype"] == "float32"
