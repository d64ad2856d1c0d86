"""DPO trains alike with every source of its reference; precomputed log-probs are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from launch import main_on_ranks, on_ranks
from runs import LORA, lines, small_recipe
from workers import training

# How a recipe gets its reference, by kind of training; all of a kind must train alike.
REFERENCES = {"lora": ("model", "adapter", "precomputed"), "full": ("model", "precomputed")}


@pytest.mark.parametrize(("ranks", "stage"), [(2, 3), (1, 2)])
@pytest.mark.parametrize("kind", REFERENCES)
def test_one_training_whatever_the_reference_comes_from(
    tmp_path: Path, kind: str, ranks: int, stage: int
) -> None:
    runs = {}
    recipe = small_recipe(
        tmp_path,
        stage=stage,
        loss={"name": "dpo"},
        lora=LORA | {"dropout": 0.0} if kind == "lora" else None,
        data={"directions": ["en-de", "zh-en"]},
        train={"max_steps": 3, "eval_every_steps": 2},
        batch={"pairs": 6, "tokens_per_rank": 600},
        checkpoint={"export": False},
    )
    recipes = [
        yaml.safe_load(recipe.read_text())
        | {"loss": {"name": "dpo", "reference": reference}, "output_dir": str(tmp_path / reference)}
        for reference in REFERENCES[kind]
    ]
    # One run for each source of the reference.
    for done in on_ranks(training.run_each, [recipes], ranks=ranks):
        assert done.code == 0, done.output
    for reference in REFERENCES[kind]:
        runs[reference] = lines(tmp_path / reference)
    # Training begins at log 2 and moves; all runs have the same metrics.
    first = runs["model"]
    assert first[0]["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first[0]["eval_reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert [line["loss"] for line in first if "loss" in line][-1] != pytest.approx(np.log(2))
    for reference, metrics in runs.items():
        assert len(metrics) == len(first)
        for line, expected in zip(metrics, first, strict=True):
            for name, value in expected.items():
                if isinstance(value, float):
                    close = pytest.approx(value, rel=1e-4, abs=1e-5)
                    assert line[name] == close, (reference, name)


def test_precomputed_log_probs_are_kept_and_a_resume_has_the_same_ones(tmp_path: Path) -> None:
    """On two ranks at ZeRO-3 with all parameters trained, only the files hold the reference."""
    recipe = small_recipe(
        tmp_path,
        loss={"name": "dpo", "reference": "precomputed"},
        data={"directions": ["en-de", "zh-en"]},
        train={"eval_every_steps": 2},
        batch={"pairs": 6, "tokens_per_rank": 600},
        checkpoint={"export": False, "every_steps": 2},
    )

    def run(name: str, steps: int, *more: str) -> str:
        told = ["--config", recipe, "--output_dir", tmp_path / name, "--train.max_steps", steps]
        done = main_on_ranks(*told, *more, ranks=2)
        assert all(rank.code == 0 for rank in done), done[0].output
        return done[0].output

    assert run("whole", 4, "--optim.schedule", "constant").count("computed, and kept in") == 2
    constant = ("--optim.schedule", "constant")
    run("halves", 2, *constant)
    files = sorted((tmp_path / "halves" / "reference").iterdir())
    assert len(files) == 2
    files[0].unlink()
    damaged = bytearray(files[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    files[1].write_bytes(damaged)
    resumed = run("halves", 4, *constant)
    assert "resumed from" in resumed and resumed.count("computed, and kept in") == 2
    assert f"{files[1]} is damaged" in resumed
    assert lines(tmp_path / "halves") == lines(tmp_path / "whole")
    again = run("again", 1, "--loss.reference_cache", str(tmp_path / "halves" / "reference"))
    assert again.count("read from") == 2 and ": computed" not in again
    other = run("other", 1, "--loss.reference_cache", str(tmp_path / "halves" / "reference"),
                "--data.eval_fraction", "0.2")  # fmt: skip
    assert other.count("computed, and kept in") == 2  # other pairs
