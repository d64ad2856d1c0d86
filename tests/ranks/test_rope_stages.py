"""Runs of models whose rotary positions depend on the length: the same at every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import save_tiny_model
from launch import on_ranks
from preference_data import write
from rope_models import CHANGING, logps_alone, rows_around_the_limit
from workers import training

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import step_totals
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs

PAIRS = 8
NAMES = ("longrope", "dynamic")
CUTS: dict[str, dict[str, Any]] = {
    "one micro-batch": {},
    "one pair each": {"batch": {"tokens_per_rank": 140}},
    "no sharing": {"batch": {"share_prefix": "none"}},
    "recomputed": {"model": {"gradient_checkpointing": True}},
    "zero3": {"deepspeed": "sharded.json", "batch": {"tokens_per_rank": 300}},
}


def recipe(folder: Path, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": {"name_or_path": str(folder / name), "dtype": "float32"},
        "data": {"format": "pairs", "path": str(folder / "pairs.jsonl")},
        "batch": {"pairs": PAIRS, "tokens_per_rank": 100_000},
        "train": {"max_steps": 2, "eval_every_steps": 1},
        "logging": {"tensorboard": False},
        "deepspeed": "ds_configs/zero0.json",
    }
    for section, value in changes.items():
        values[section] = (
            values[section] | value if isinstance(value, dict) else f"{folder}/{value}"
        )
    values["data"]["eval_path"] = values["data"]["path"]
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ropes")
    for name in NAMES:
        family, overrides = CHANGING[name]
        save_tiny_model(folder / name, family, **overrides)
    write(folder / "pairs.jsonl", rows_around_the_limit(PAIRS))
    sharded = {"stage": 3, "stage3_param_persistence_threshold": 0}
    (folder / "sharded.json").write_text(json.dumps({"zero_optimization": sharded}))
    return folder


@pytest.fixture(scope="module")
def records(folder: Path) -> dict[tuple[int, str, str], dict[str, Any]]:
    by_case = {}
    recipes = {f"{n}-{cut}": recipe(folder, n, c) for n in NAMES for cut, c in CUTS.items()}
    for ranks in (1, 2):
        output = folder / str(ranks)
        for done in on_ranks(training.train_each, [recipes, str(output), {}], ranks=ranks):
            assert done.code == 0, done.output
        for key in recipes:
            lines = (output / key / "metrics.jsonl").read_text().splitlines()
            by_case[(ranks, *key.split("-", 1))] = torch.load(output / f"{key}.pt") | {
                "lines": [json.loads(line) for line in lines]
            }
    return by_case


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_and_gradients_do_not_depend_on_the_cut(
    records: Any, ranks: int, name: str, cut: str
) -> None:
    actual, expected = records[ranks, name, cut], records[1, name, "no sharing"]
    assert actual["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert actual["gradients"][0].keys() == expected["gradients"][0].keys()
    for weight, gradient in expected["gradients"][0].items():
        error = (actual["gradients"][0][weight] - gradient).norm() / gradient.norm()
        assert error < 1e-3, (weight, error)
    held_out = [[line["eval_loss"] for line in record["lines"] if "eval_loss" in line]
                for record in (actual, expected)]  # fmt: skip
    assert held_out[0] == pytest.approx(held_out[1], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_plain_transformers(folder: Path, records: Any, name: str) -> None:
    config = parse_config(recipe(folder, name, {}), "test")
    pairs = prepare_pairs(config, prints_counts=False).train
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
    chosen, rejected = logps_alone(plain, pairs).T
    whole = tuple(range(len(pairs)))
    batch = pack(pairs, whole)
    logps = batch.logps(chosen, rejected[:, None])
    totals = step_totals([[whole]], pairs)
    expected = step_share(pair_terms(logps, config.loss), totals, config.loss).item()
    for ranks in (1, 2):
        for cut in CUTS:
            assert records[ranks, name, cut]["losses"][0] == pytest.approx(expected, rel=1e-5)
