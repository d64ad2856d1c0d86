"""Whole runs on a GPU: the flash kernels and half precision against float32 on the same device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_model

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def train(model: Path, folder: Path, *options: str) -> list[dict]:
    """Losses of three steps on the built-in sample, one rank."""
    command = [
        sys.executable, str(ROOT / "cpo_ds" / "train.py"),
        "--config", str(ROOT / "recipes" / "demo.yaml"),
        f"--model.name_or_path={model}", f"--output_dir={folder}",
        "--data.max_prompt_tokens=400", "--data.max_tokens=800",
        "--batch.pairs=16", "--train.max_steps=3", "--lora.dropout=0", *options,
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3", "zero3-offload"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lora", [(), ("--lora=none", "--optim.learning_rate=1e-4")])
def test_half_precision_follows_float32(
    tmp_path: Path, stage: str, dtype: str, lora: tuple[str, ...]
) -> None:
    model = save_tiny_model(tmp_path / "model")
    options = (f"--deepspeed=ds_configs/{stage}.json", *lora)
    exact = train(model, tmp_path / "exact", "--model.dtype=float32", *options)
    half = train(model, tmp_path / "half", f"--model.dtype={dtype}", *options)
    assert [line["pairs"] for line in half] == [line["pairs"] for line in exact]
    for one, other in zip(half, exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)
        assert one["peak_memory_gib"] > 0 and one["model_tflops"] > 0
