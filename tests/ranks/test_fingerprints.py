"""Fingerprints of weights: the same at every stage, and checked by a resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from helpers import save_tiny_adapter, save_tiny_model
from launch import main_on_ranks, on_ranks, write_recipe
from workers import loading

REPOSITORY_DS = {stage: f"ds_configs/zero{stage}.json" for stage in (0, 2, 3)}


def recipe(model: Path, stage: int = 0, **sections: Any) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {"format": "sample"},
        "batch": {"pairs": 8, "tokens_per_rank": 1024},
        "train": {"max_steps": 2},
        "lora": {"rank": 2, "alpha": 4, "target_modules": ["q_proj"]},
        "checkpoint": {"every_steps": 1, "export": False},
        "logging": {"tensorboard": False},
        "deepspeed": REPOSITORY_DS[stage],
    } | sections


def test_stages_and_ranks_agree(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    recipes = {str(stage): recipe(model, stage) for stage in REPOSITORY_DS}
    fingerprints = set()
    for ranks in (1, 2):
        for done in on_ranks(loading.print_fingerprints, [recipes], ranks=ranks):
            assert done.code == 0, done.output
            lines = [line for line in done.output.splitlines() if line.startswith("fingerprint ")]
            assert len(lines) == len(recipes)
            fingerprints |= {line.split()[2] for line in lines}
    (only,) = fingerprints
    assert len(only) == 16


def run(folder: Path, values: dict[str, Any]) -> Any:
    (done,) = main_on_ranks("--config", write_recipe(folder, values))
    return done


def test_an_adapter_goes_on_from_the_same_base_alone(tmp_path: Path) -> None:
    """An adapter's checkpoint lacks the base model, so other base weights would go unnoticed."""
    model = save_tiny_model(tmp_path / "model")
    values = recipe(model, output_dir=str(tmp_path / "run"))
    done = run(tmp_path, values)
    assert done.code == 0, done.output

    shutil.copytree(model, tmp_path / "moved")
    shutil.rmtree(model)
    save_tiny_model(model, seed=1)
    longer = values | {"train": {"max_steps": 3}}
    done = run(tmp_path, longer)
    assert done.code == 2 and "Traceback" not in done.output, done.output
    assert "step-00000002 was trained from other weights" in done.output
    assert "model.name_or_path" in done.output

    moved = {"name_or_path": str(tmp_path / "moved"), "dtype": "float32"}
    done = run(tmp_path, longer | {"model": moved})
    assert done.code == 0, done.output
    assert "at step 2 of 3" in done.output


def test_a_merged_adapter_is_part_of_the_base(tmp_path: Path) -> None:
    """Checkpoints of a new adapter lack the weights of the merged adapter and of the base."""
    model = save_tiny_model(tmp_path / "model")
    adapter = save_tiny_adapter(model, tmp_path / "adapter")
    merged = {"name_or_path": str(model), "dtype": "float32"}
    merged |= {"adapter": str(adapter), "adapter_mode": "merge"}
    for stage in (0, 3):
        values = recipe(model, stage, output_dir=str(tmp_path / f"run-{stage}"))
        values |= {"model": merged}
        done = run(tmp_path, values)
        assert done.code == 0, done.output
    weights = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    changed = {name: weight * 1.5 for name, weight in weights.items()}
    safetensors.torch.save_file(changed, adapter / "adapter_model.safetensors")
    for stage in (0, 3):
        values = recipe(model, stage, output_dir=str(tmp_path / f"run-{stage}"))
        values |= {"model": merged}
        done = run(tmp_path, values | {"train": {"max_steps": 3}})
        assert (
            done.code == 2
            and "its starting adapter (the content of model.adapter) is" in done.output
        ), done.output
