"""float16 under DeepSpeed: Adam's moments and the weights' change are those of float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import save_tiny_model
from launch import on_ranks
from preference_data import write
from test_invariance import random_rows
from workers import float16

BOUND = 0.02  # relative, of norms


def recipe(folder: Path, dtype: str) -> dict[str, Any]:
    return {
        "model": {"name_or_path": str(folder / "model"), "dtype": dtype},
        "data": {"format": "pairs", "path": str(folder / "pairs.jsonl")},
        "batch": {"pairs": 8, "tokens_per_rank": 360},
        "train": {"epochs": 20},
        "optim": {"warmup_ratio": 0.0, "eps": 1e-6, "max_grad_norm": 0.0},
        "logging": {"tensorboard": False},
        "deepspeed": "ds_configs/zero1.json",
        "output_dir": str(folder / dtype),
    }


@pytest.fixture(scope="module")
def norms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Norms after the first update: of float32, and of float16 at each stage."""
    folder = tmp_path_factory.mktemp("float16")
    save_tiny_model(folder / "model")
    write(folder / "pairs.jsonl", random_rows(8))
    recipes: dict[str, Any] = {"float32": (1, recipe(folder, "float32"))}
    recipes |= {str(stage): (stage, recipe(folder, "float16")) for stage in range(4)}
    for done in on_ranks(float16.first_updates, [recipes, str(folder)]):
        assert done.code == 0, done.output
    return json.loads((folder / "norms.json").read_text())


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_moments_and_changes_are_those_of_float32(norms: Any, stage: str) -> None:
    assert norms[stage] == pytest.approx(norms["float32"], rel=BOUND)


def test_at_stage_0_deepspeed_is_wrong_still_so_that_it_stays_refused(norms: Any) -> None:
    """If this fails, the refusal in `engine.settings` can go."""
    assert norms["0"]["moments"] < 0.01 * norms["float32"]["moments"]
