"""Exports load in plain transformers and peft and score the held-out pairs like the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from export_runs import CASES, load_export
from helpers import plain_logps

from cpo_ds.losses import pair_terms, step_share
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs
from cpo_ds.schema import PairLogps, StepTotals


@torch.no_grad()
def held_out_metrics(model: Any, values: dict[str, Any]) -> dict[str, float]:
    """Loss and mean log-probs of the held-out pairs, by plain forward passes."""
    config = parse_config(values, "test")
    pairs = prepare_pairs(config, prints_counts=False).held_out
    chosen, rejected = plain_logps(model, pairs)

    def count(side: int) -> torch.Tensor:
        return torch.tensor([float(pair.num_scored[side]) for pair in pairs])

    counts = (count(0), count(1)[:, None], torch.ones_like(rejected))
    logps = PairLogps(chosen, rejected, *counts)
    totals = StepTotals(len(pairs), len(pairs), int(count(0).sum()), 0, 0, 0)
    loss = step_share(pair_terms(logps, config.loss), totals, config.loss)
    return {
        "eval_loss": loss.item(),
        "eval_logp_chosen": chosen.mean().item(),
        "eval_logp_rejected": rejected.mean().item(),
    }


def evaluations(values: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (Path(values["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "eval_loss" in line]


@pytest.mark.parametrize("name", CASES)
def test_export_gives_the_same_log_probs(export_runs: Any, name: str) -> None:
    values = export_runs[name]
    before, after = evaluations(values)
    metrics = held_out_metrics(
        load_export(CASES[name], values, Path(values["output_dir"]) / "export"), values
    )
    for key, value in metrics.items():
        assert after[key] == pytest.approx(value, rel=1e-5), key
        assert before[key] != pytest.approx(value, rel=1e-3), key  # it was trained


@pytest.mark.parametrize("name", CASES)
def test_export_is_a_folder_that_others_can_load(export_runs: Any, name: str) -> None:
    case, values = CASES[name], export_runs[name]
    export = Path(values["output_dir"]) / "export"
    names = {path.name for path in export.iterdir()}
    transformers.AutoTokenizer.from_pretrained(export)
    if case.exports_adapter:
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names
        assert not any(n.startswith("model") for n in names)
        settings = json.loads((export / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == values["model"]["name_or_path"]
        assert settings["inference_mode"]
    else:
        assert {"config.json", "generation_config.json", "model.safetensors"} <= names
        assert "README.md" in names
        assert not any("adapter" in n for n in names)
        config = (export / "config.json").read_text()
        assert "cpo_ds" not in config and "shared_prefix" not in config
        assert json.loads(config)["tie_word_embeddings"] == case.tied


def test_before_training_every_case_starts_from_its_own_weights(export_runs: Any) -> None:
    """A starting adapter, merged or continued, takes part from the first evaluation on."""
    start = {name: evaluations(export_runs[name])[0]["eval_loss"] for name in CASES}
    for tied in (True, False):
        adapted = [start[n] for n, c in CASES.items() if c.tied == tied and c.adapter_mode]
        plain = [start[n] for n, c in CASES.items() if c.tied == tied and not c.adapter_mode]
        assert adapted == pytest.approx([adapted[0]] * len(adapted), rel=1e-5)
        assert plain == pytest.approx([plain[0]] * len(plain), rel=1e-5)
        assert adapted[0] != pytest.approx(plain[0], rel=1e-3)
