"""Whole runs on a GPU: the flash kernels and half precision against float32 on the same device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_model
from repository import ROOT

from cpo_ds.recipe import load_config

TRAINED = {
    "a LoRA adapter": ["--lora.dropout=0"],
    "all parameters": ["--lora=none", "--optim.learning_rate=1e-4"],
}
# DeepSpeed trains float16 wrongly at stage 0, which is refused: tests/ranks/test_configurations.py.
STAGES = {
    "bfloat16": ["zero0", "zero2", "zero3", "zero3-offload"],
    "float16": ["zero1", "zero2", "zero3", "zero3-offload"],
}


def options(model: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of a run of three steps on the built-in sample."""
    return [
        "--config", str(ROOT / "recipes" / "demo.yaml"),
        f"--model.name_or_path={model}", f"--output_dir={folder}",
        "--data.max_prompt_tokens=400", "--data.max_tokens=800",
        "--batch.pairs=16", "--train.max_steps=3", *more,
    ]  # fmt: skip


def train(model: Path, folder: Path, trained: str, *more: str) -> list[dict]:
    """Trains on one rank and returns the losses."""
    arguments = options(model, folder, *TRAINED[trained], *more)
    command = [sys.executable, str(ROOT / "cpo_ds" / "train.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"training {trained} with" in run.stdout
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("trained", TRAINED)
def test_options_give_the_training_that_they_are_named_for(tmp_path: Path, trained: str) -> None:
    """Checks without a GPU that the options select the training that the tests below measure."""
    config, _ = load_config(options(tmp_path, tmp_path, *TRAINED[trained]))
    assert config.trains_adapter == (trained == "a LoRA adapter")
    assert config.lora is None or config.lora.dropout == 0  # else two precisions draw differently


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(
    ("dtype", "stage"), [(dtype, stage) for dtype, stages in STAGES.items() for stage in stages]
)
def test_half_precision_follows_float32(
    tmp_path: Path, dtype: str, stage: str, trained: str
) -> None:
    model = save_tiny_model(tmp_path / "model")
    stage_file = f"--deepspeed=ds_configs/{stage}.json"
    exact = train(model, tmp_path / "exact", trained, "--model.dtype=float32", stage_file)
    half = train(model, tmp_path / "half", trained, f"--model.dtype={dtype}", stage_file)
    assert [line["pairs"] for line in half] == [line["pairs"] for line in exact]
    for one, other in zip(half, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)
        assert one["peak_memory_gib"] > 0 and one["model_tflops"] > 0
