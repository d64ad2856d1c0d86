"""A run that was killed and resumed writes the metrics, and the weights, of one that never was.

Two ranks, ZeRO-3, 8 steps with a checkpoint after every third: full-parameter training under the
real launcher, killed in step 5 or 6; LoRA with dropout, killed while it saves step 6.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import workers
from helpers import save_tiny_model
from launch import (
    deepspeed,
    deepspeed_command,
    finish,
    kill,
    main_on_ranks,
    on_ranks,
    start,
    write_recipe,
)

STEPS, RANKS = 8, 2
TIMED = {"step_seconds", "pairs_per_second", "tokens_per_second", "peak_memory_gib"}
TIMED |= {"model_tflops", "mfu"}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("resume")
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 256, "num_hidden_layers": 3}
    model = save_tiny_model(folder / "model", tie_word_embeddings=True, **sizes)
    (folder / "ds.json").write_text(
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    values = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {"format": "sample", "eval_fraction": 0.1},
        "batch": {"pairs": 16, "tokens_per_rank": 2048},
        "train": {"max_steps": STEPS, "eval_every_steps": 2},
        "optim": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_ratio": 0.25},
        "checkpoint": {"every_steps": 3},
        "logging": {"tensorboard": False},
        "deepspeed": str(folder / "ds.json"),
    }
    lora = {"rank": 4, "alpha": 8, "dropout": 0.05, "target_modules": ["q_proj", "down_proj"]}
    return {
        "full": write_recipe(folder / "full", values),
        "lora": write_recipe(folder / "lora", values | {"lora": lora}),
    }


@pytest.fixture(scope="module")
def never_stopped(recipes: dict[str, Path]) -> dict[str, Path]:
    """The output folders of runs that were left alone."""
    folders = {}
    for kind, recipe in recipes.items():
        folders[kind] = recipe.parent / "whole"
        arguments = ("--config", recipe, "--output_dir", folders[kind])
        for done in main_on_ranks(*arguments, ranks=RANKS):
            assert done.code == 0, done.output
    return folders


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in text]


def newest(folder: Path) -> str:
    return (folder / "checkpoints" / "latest").read_text()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "export").glob("*.safetensors")
    return safetensors.torch.load_file(file)


def assert_same_run(resumed: Path, whole: Path) -> None:
    assert lines(resumed) == lines(whole)
    steps = [line["step"] for line in lines(whole) if "loss" in line]
    held_out = [line["step"] for line in lines(whole) if "eval_loss" in line]
    assert steps == list(range(1, STEPS + 1)) and held_out == [0, 2, 4, 6, 8]
    expected, found = weights(whole), weights(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def wait_for_step(run: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 180
    while f'{{"step": {step},' not in _text(folder / "metrics.jsonl"):
        assert run.poll() is None and time.monotonic() < deadline, finish(run, 1).output
        time.sleep(0.005)


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def test_full_parameter_run_killed_after_its_checkpoint(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    folder = recipes["full"].parent / "killed"
    arguments = ("--config", recipes["full"], "--output_dir", folder)
    run = start(deepspeed_command(*arguments, ranks=RANKS))
    wait_for_step(run, folder, 4)
    kill(run)
    assert finish(run).code == -9
    assert newest(folder) == "step-00000003"
    before = lines(folder)
    assert before[-1]["step"] >= 4 and before[-1]["step"] < STEPS

    done = deepspeed(*arguments, ranks=RANKS)
    assert done.code == 0, done.output
    assert "resumed from" in done.output and "at step 3 of 8" in done.output
    assert_same_run(folder, never_stopped["full"])


def test_lora_run_killed_while_it_saves(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    folder = recipes["lora"].parent / "killed"
    arguments = ["--config", str(recipes["lora"]), "--output_dir", str(folder)]
    first, _ = on_ranks(workers.die_while_saving, [6, *arguments], ranks=RANKS)
    assert first.code == -9, first.output
    assert newest(folder) == "step-00000003"
    assert (folder / "checkpoints" / "tmp-step-00000006").is_dir()
    assert max(line["step"] for line in lines(folder)) == 6

    first, second = main_on_ranks(*arguments, ranks=RANKS)
    assert (first.code, second.code) == (0, 0), first.output + second.output
    assert "at step 3 of 8" in first.output
    assert_same_run(folder, never_stopped["lora"])


def test_negative_control_another_seed_is_another_run(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    """Dropout's random states are part of a checkpoint: without them the lines would differ."""
    folder = recipes["lora"].parent / "reseeded"
    arguments = ["--config", str(recipes["lora"]), "--output_dir", str(folder)]
    for done in on_ranks(workers.train_with_other_dropout, arguments, ranks=RANKS):
        assert done.code == 0, done.output
    assert lines(folder) != lines(never_stopped["lora"])


def test_checkpoints_of_an_adapter_leave_the_frozen_weights_out(
    recipes: dict[str, Path], never_stopped: dict[str, Path]
) -> None:
    def size(kind: str) -> int:
        saved = never_stopped[kind] / "checkpoints" / f"step-{STEPS:08d}"
        return sum(file.stat().st_size for file in saved.iterdir())

    base = (recipes["lora"].parent.parent / "model" / "model.safetensors").stat().st_size
    assert size("full") > 3 * base  # weights and AdamW's two moments
    assert size("lora") < 0.25 * base


def test_old_checkpoints_are_pruned(never_stopped: dict[str, Path]) -> None:
    for folder in never_stopped.values():
        names = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
        assert names == ["step-00000006", "step-00000008"]
        assert newest(folder) == "step-00000008"
