"""What a run exports loads in plain transformers and peft and scores the held-out pairs alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import workers
from helpers import plain_logps, save_tiny_adapter, save_tiny_model
from launch import on_ranks

from cpo_ds.build import prepare_pairs
from cpo_ds.config import parse_config
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.schema import PairLogps, StepTotals

ALL_SHARDED = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
LORA = {"rank": 4, "alpha": 8, "target_modules": ["v_proj", "down_proj"]}


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to train, and what its export must be."""

    ranks: int
    stage: int
    tied: bool = False
    lora: bool = False
    adapter_mode: str | None = None

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


def recipe(folder: Path, name: str, case: Case) -> dict[str, Any]:
    base = folder / ("tied" if case.tied else "untied")
    model: dict[str, Any] = {"name_or_path": str(base), "dtype": "float32"}
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case -> the recipe that was run."""
    folder = tmp_path_factory.mktemp("export")
    for name, tied in (("tied", True), ("untied", False)):
        base = save_tiny_model(folder / name, tie_word_embeddings=tied)
        save_tiny_adapter(base, folder / f"{name}-adapter")
    (folder / "stage3.json").write_text(json.dumps(ALL_SHARDED))
    recipes = {name: recipe(folder, name, case) for name, case in CASES.items()}
    for ranks in (1, 2):
        some = [recipes[name] for name, case in CASES.items() if case.ranks == ranks]
        for done in on_ranks(workers.run_each, [some], ranks=ranks):
            assert done.code == 0, done.output
    return recipes


def load_export(case: Case, values: dict[str, Any]) -> Any:
    export = Path(values["output_dir"]) / "export"
    if not case.exports_adapter:
        return transformers.AutoModelForCausalLM.from_pretrained(export)
    base = transformers.AutoModelForCausalLM.from_pretrained(values["model"]["name_or_path"])
    return peft.PeftModel.from_pretrained(base, export).eval()


@torch.no_grad()
def held_out_metrics(model: Any, values: dict[str, Any]) -> dict[str, float]:
    """Loss and mean log-probs of the held-out pairs, by plain forward passes."""
    config = parse_config(values, "test")
    _, _, pairs = prepare_pairs(config, tell=False)
    chosen, rejected = plain_logps(model, pairs)

    def count(side: str) -> torch.Tensor:
        return torch.tensor([float(getattr(pair, f"num_{side}_scored")) for pair in pairs])

    logps = PairLogps(chosen, rejected, count("chosen"), count("rejected"))
    totals = StepTotals(len(pairs), int(count("chosen").sum()), 0, 0, 0)
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
def test_export_gives_the_same_log_probs(runs: Any, name: str) -> None:
    values = runs[name]
    before, after = evaluations(values)
    found = held_out_metrics(load_export(CASES[name], values), values)
    for key, value in found.items():
        assert after[key] == pytest.approx(value, rel=1e-5), key
        assert before[key] != pytest.approx(value, rel=1e-3), key  # it was trained


@pytest.mark.parametrize("name", CASES)
def test_export_is_a_folder_that_others_can_load(runs: Any, name: str) -> None:
    case, values = CASES[name], runs[name]
    export = Path(values["output_dir"]) / "export"
    names = {path.name for path in export.iterdir()}
    transformers.AutoTokenizer.from_pretrained(export)
    if case.exports_adapter:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert not any(n.startswith("model") for n in names)
        settings = json.loads((export / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == values["model"]["name_or_path"]
        assert settings["inference_mode"]
    else:
        assert {"config.json", "generation_config.json", "model.safetensors"} <= names
        assert not any("adapter" in n for n in names)
        config = (export / "config.json").read_text()
        assert "cpo_ds" not in config and "shared_prefix" not in config
        assert json.loads(config)["tie_word_embeddings"] == case.tied


def test_before_training_every_case_starts_from_its_own_weights(runs: Any) -> None:
    """Merged or continued, a starting adapter counts from the first evaluation on."""
    start = {name: evaluations(values)[0]["eval_loss"] for name, values in runs.items()}
    for tied in (True, False):
        adapted = [start[n] for n, c in CASES.items() if c.tied == tied and c.adapter_mode]
        plain = [start[n] for n, c in CASES.items() if c.tied == tied and not c.adapter_mode]
        assert adapted == pytest.approx([adapted[0]] * len(adapted), rel=1e-5)
        assert plain == pytest.approx([plain[0]] * len(plain), rel=1e-5)
        assert adapted[0] != pytest.approx(plain[0], rel=1e-3)
