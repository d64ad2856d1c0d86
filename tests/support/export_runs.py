"""Runs of every kind that end in an export, made once for all tests that look at them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import transformers
from helpers import save_tiny_adapter, save_tiny_model
from launch import on_ranks
from workers import training

ALL_SHARDED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
LORA = {"rank": 4, "alpha": 8, "target_modules": ["v_proj", "down_proj"]}


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to train, and the kind of its export."""

    ranks: int
    stage: int
    tied: bool = False
    lora: bool = False
    adapter_mode: str | None = None
    dtype: str = "float32"

    @property
    def exports_adapter(self) -> bool:
        return self.adapter_mode == "continue" or (self.lora and self.adapter_mode is None)


CASES = {
    "full, untied, ZeRO-3": Case(ranks=2, stage=3),
    "full, tied, ZeRO-3": Case(ranks=2, stage=3, tied=True),
    "full, tied, ZeRO-0": Case(ranks=1, stage=0, tied=True),
    "full, untied, ZeRO-2": Case(ranks=2, stage=2),
    "LoRA, untied, ZeRO-3": Case(ranks=2, stage=3, lora=True),
    "LoRA, tied, ZeRO-0": Case(ranks=1, stage=0, tied=True, lora=True),
    "adapter continued, ZeRO-3": Case(ranks=2, stage=3, adapter_mode="continue"),
    "adapter continued, tied, ZeRO-0": Case(1, 0, tied=True, adapter_mode="continue"),
    "adapter merged, LoRA, ZeRO-3": Case(2, 3, tied=True, lora=True, adapter_mode="merge"),
    "adapter merged, LoRA, ZeRO-0": Case(1, 0, lora=True, adapter_mode="merge"),
    "adapter merged, full, ZeRO-3": Case(ranks=2, stage=3, adapter_mode="merge"),
}


# In bfloat16 no plain forward pass gives the same log-probs to 1e-5.
BFLOAT16_CASES = {
    "full, bfloat16, ZeRO-3": Case(ranks=2, stage=3, dtype="bfloat16"),
    "full, tied, bfloat16, ZeRO-2": Case(ranks=2, stage=2, tied=True, dtype="bfloat16"),
    "LoRA, bfloat16, ZeRO-2": Case(ranks=2, stage=2, lora=True, dtype="bfloat16"),
    "LoRA, bfloat16, ZeRO-3": Case(ranks=2, stage=3, lora=True, dtype="bfloat16"),
}
ALL_CASES = CASES | BFLOAT16_CASES


def recipe(folder: Path, name: str, case: Case) -> dict[str, Any]:
    base = folder / ("tied" if case.tied else "untied")
    model: dict[str, Any] = {"name_or_path": str(base), "dtype": case.dtype}
    if case.adapter_mode:
        adapter = folder / f"{base.name}-adapter"
        model |= {"adapter": str(adapter), "adapter_mode": case.adapter_mode}
    return {
        "model": model,
        "data": {"format": "sample", "directions": ["en-de", "de-en"], "eval_fraction": 0.2},
        "batch": {"pairs": 8, "tokens_per_rank": 2048},
        "train": {"max_steps": 2},
        "optim": {"learning_rate": 1e-2},
        "logging": {"tensorboard": False},
        "deepspeed": str(folder / "stage3.json")
        if case.stage == 3
        else f"ds_configs/zero{case.stage}.json",
        "output_dir": str(folder / name),
        **({"lora": LORA} if case.lora else {}),
    }


def run_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Runs every case; returns case -> the recipe that was run."""
    for name, tied in (("tied", True), ("untied", False)):
        base = save_tiny_model(folder / name, tie_word_embeddings=tied)
        save_tiny_adapter(base, folder / f"{name}-adapter")
    (folder / "stage3.json").write_text(json.dumps(ALL_SHARDED))
    recipes = {name: recipe(folder, name, case) for name, case in ALL_CASES.items()}
    for ranks in (1, 2):
        chosen = [recipes[name] for name, case in ALL_CASES.items() if case.ranks == ranks]
        for done in on_ranks(training.run_each, [chosen], ranks=ranks):
            assert done.code == 0, done.output
            assert "Writing model shards" not in done.output
    return recipes


def load_export(case: Case, values: dict[str, Any], export: Path) -> Any:
    """Loads an export of a case into plain transformers, or into peft on its base."""
    if not case.exports_adapter:
        return transformers.AutoModelForCausalLM.from_pretrained(export)
    base = transformers.AutoModelForCausalLM.from_pretrained(values["model"]["name_or_path"])
    return peft.PeftModel.from_pretrained(base, export).eval()
