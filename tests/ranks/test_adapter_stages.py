"""Adapters that a run continues: one gradient at every ZeRO stage, and resumes with its bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adapter_kinds import lora, save_adapter
from helpers import save_tiny_model
from launch import on_ranks
from model_files import settings
from runs import lines, run_recipe, small_recipe
from workers import adapters

EVERYTHING = {
    "use_dora": True,
    "use_rslora": True,
    "bias": "all",
    "rank_pattern": {"q_proj": 2},
    "modules_to_save": ["norm", "o_proj"],
    "trainable_token_indices": [5, 7, 40],
}
CONTINUED: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": EVERYTHING,
    "DoRA on embeddings": {"use_dora": True, "target_modules": ["embed_tokens", "v_proj"]},
    "whole embeddings": {"modules_to_save": ["embed_tokens"]},
    "a whole MLP": {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]},
    "embeddings in its file": {"embeddings": True},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, dict[str, Any]]]:
    """Outcomes of each adapter by ZeRO stage, with and without recomputed layers."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tiny_model(folder / "base", attention_bias=True)
    made: dict[int, dict[str, dict[str, Any]]] = {}
    for stage, ranks in ((0, 1), (2, 2), (3, 2)):
        zero = folder / f"zero{stage}.json"
        persistent = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
        zero.write_text(json.dumps({"zero_optimization": {"stage": stage} | persistent}))
        recipes = {}
        for name, given in CONTINUED.items():
            options = dict(given)
            embeddings = options.pop("embeddings", False)
            adapter = folder / name
            if not adapter.exists():
                save_adapter(base, adapter, lora(**options), embeddings=embeddings)
            for recomputes in (False, True):
                values = settings(
                    base, adapter, deepspeed=str(zero), train={"max_steps": 1},
                    checkpoint={"in_background": False},
                    output_dir=str(folder / f"{name}-{stage}-{recomputes}"),
                )  # fmt: skip
                values["model"] |= {
                    "adapter_mode": "continue",
                    "gradient_checkpointing": recomputes,
                }
                recipes[f"{name}, {recomputes}"] = values
        file = str(folder / f"{stage}.json")
        for done in on_ranks(adapters.compare_each, [recipes, file], ranks=ranks):
            assert done.code == 0, done.output
        made[stage] = json.loads(Path(file).read_text())
    return made


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("name", CONTINUED)
def test_every_stage_trains_alike_and_exports_what_it_trained(
    outcomes: dict[int, dict[str, dict[str, Any]]], name: str, recomputes: bool
) -> None:
    of_stages = {stage: outcome[f"{name}, {recomputes}"] for stage, outcome in outcomes.items()}
    gradients = [outcome.pop("gradient") for outcome in of_stages.values()]
    assert gradients == pytest.approx([gradients[0]] * 3, rel=1e-4)
    for outcome in of_stages.values():
        assert set(outcome) == {"start", "online", "offline", "merged"}, outcome
        assert max(outcome.values()) < 1e-4, outcome


@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_has_the_bits_of_a_whole_one(tmp_path: Path, stage: int) -> None:
    recipe = small_recipe(
        tmp_path,
        stage=stage,
        model={"adapter": str(tmp_path / "adapter"), "adapter_mode": "continue"},
        train={"max_steps": 4, "eval_every_steps": 2},
        checkpoint={"every_steps": 2, "export": False},
        optim={"schedule": "constant"},
    )
    everything = EVERYTHING | {"lora_dropout": 0.05}
    del everything["trainable_token_indices"]  # the base's head is tied
    save_adapter(tmp_path / "model", tmp_path / "adapter", lora(**everything))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run_recipe(recipe, whole).code == 0
    assert run_recipe(recipe, halves, "--train.max_steps", 2).code == 0
    assert "resumed from" in run_recipe(recipe, halves).output
    assert lines(halves) == lines(whole)
