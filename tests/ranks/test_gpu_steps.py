"""Waits for the device and exchanges between ranks, counted on real steps under DeepSpeed.

`step_counts.json` holds the counts of a tiny model's third step, as a budget. In the first two
ZeRO-3 learns the order of modules. A change of any count fails here until the file is written
again by `STEP_COUNTS=write pytest tests/ranks/test_gpu_steps.py`. Waits are operations whose result
the host reads; on a GPU each would stop the host until the device has caught up.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers import save_tiny_model
from launch import on_ranks
from preference_data import write
from test_invariance import random_rows
from workers import steps

FILE = Path(__file__).with_name("step_counts.json")
STAGES = (0, 1, 2, 3)
KINDS = ("full", "lora", "lora recomputed", "full in bfloat16", "lora in bfloat16")
# No weight is kept whole, or kept from the forward pass for the backward pass, as at real sizes.
GATHER_ALL = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
}
LORA_TENSORS = 8  # two for each of four layers
CASES = [(ranks, stage, kind) for ranks in (1, 2) for stage in STAGES for kind in KINDS]


def recipe(folder: Path, stage: int, kind: str) -> dict[str, Any]:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["down_proj"]}
    return {
        "model": {
            "name_or_path": str(folder / "model"),
            "dtype": "bfloat16" if kind.endswith("bfloat16") else "float32",
            "gradient_checkpointing": kind == "lora recomputed",
        },
        "lora": None if kind.startswith("full") else lora,
        "data": {"format": "pairs", "path": str(folder / "pairs.jsonl"), "add_bos": "always"},
        "batch": {"pairs": 8, "tokens_per_rank": 180},
        "train": {"max_steps": 3},
        "logging": {"tensorboard": False},
        "deepspeed": str(folder / f"zero{stage}.json"),
    }


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """ "ranks, stage, kind" -> counts of one step."""
    folder = tmp_path_factory.mktemp("steps")
    save_tiny_model(folder / "model", num_hidden_layers=4)
    write(folder / "pairs.jsonl", random_rows(24))
    sections: dict[int, dict[str, Any]] = {stage: {"stage": stage} for stage in STAGES}
    sections[1] |= {"overlap_comm": False}
    sections[3] |= GATHER_ALL
    for stage, section in sections.items():
        (folder / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": section}))
    by_case = {}
    for ranks in (1, 2):
        recipes = {f"{s}-{k}": recipe(folder, s, k) for s in STAGES for k in KINDS}
        for done in on_ranks(steps.count_steps, [recipes, str(folder)], ranks=ranks):
            assert done.code == 0, done.output
        for stage in STAGES:
            for kind in KINDS:
                file = folder / f"{stage}-{kind}.json"
                by_case[f"{ranks} ranks, ZeRO-{stage}, {kind}"] = json.loads(file.read_text())
                file.unlink()
    if os.environ.get("STEP_COUNTS") == "write":
        lines = [f"{json.dumps(case)}: {json.dumps(by_case[case])}" for case in by_case]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return by_case


@pytest.mark.parametrize(("ranks", "stage", "kind"), CASES)
def test_a_step_has_the_counts_on_file(counts: Any, ranks: int, stage: int, kind: str) -> None:
    case = f"{ranks} ranks, ZeRO-{stage}, {kind}"
    assert counts[case] == json.loads(FILE.read_text())[case]


@pytest.mark.parametrize(("ranks", "stage", "kind"), CASES)
def test_no_host_waits_before_the_update(counts: Any, ranks: int, stage: int, kind: str) -> None:
    assert counts[f"{ranks} ranks, ZeRO-{stage}, {kind}"]["waits"]["before the update"] == 0


def test_stage_0_alone_waits_for_each_tensor_in_half_precision(counts: Any) -> None:
    """Hence an adapter on GPUs takes stage 1 if `deepspeed` is auto."""
    for ranks in (1, 2):
        waits = [
            counts[f"{ranks} ranks, ZeRO-{stage}, lora in bfloat16"]["waits"]["after the update"]
            for stage in (0, 1, 2)
        ]
        assert waits[0] > LORA_TENSORS and max(waits[1:]) < LORA_TENSORS


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_only_gradients_are_exchanged_if_weights_are_whole(counts: Any, stage: int) -> None:
    for kind in KINDS:
        of_step = counts[f"2 ranks, ZeRO-{stage}, {kind}"]
        assert not any("all_gather_into_tensor" in batch for batch in of_step["micro_batches"])


@pytest.mark.parametrize(("kind", "times"), [("full", 2), ("lora recomputed", 2)])
def test_zero3_gathers_all_weights_twice_in_a_micro_batch(
    counts: Any, kind: str, times: int
) -> None:
    """Forward, and backward; recomputing a layer that is gathered whole needs no third time.

    The first layer of a LoRA run is not gathered whole (see `engine.leaves`): its recomputation
    and its backward pass gather it once each, since nothing is kept here.
    """
    of_step = counts[f"2 ranks, ZeRO-3, {kind}"]
    weights = of_step["weights"]
    third_time = weights["first layer"] if "recomputed" in kind else 0
    assert len(of_step["micro_batches"]) == 2
    for exchanges in of_step["micro_batches"]:
        gathered = exchanges["all_gather_into_tensor"][1]
        assert gathered == pytest.approx(times * weights["all"] + third_time, rel=0.01)
