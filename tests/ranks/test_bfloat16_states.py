"""Optimizer states in bfloat16 on two ranks: runs resume bit for bit, and checkpoints are read.

A run is cut back to its second of three checkpoints and resumed, at each ZeRO stage that has such
states, with all parameters and with an adapter.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import assert_same_bits, tensors_of
from launch import main_on_ranks
from runs import LORA, lines, run_recipe, small_recipe

from cpo_ds.export.from_checkpoint import export

STEPS, RANKS = 6, 2
CASES = [("full", 1), ("full", 2), ("full", 3), ("lora", 2), ("lora", 3)]
Runs = dict[tuple[str, int], Path]


def recipe(folder: Path, kind: str, stage: int, states: str = "bfloat16") -> Path:
    return small_recipe(
        folder / f"{kind}-{stage}-{states}",
        stage=stage,
        model={"dtype": "bfloat16"},
        optim={"states": states},
        train={"max_steps": STEPS},
        checkpoint={"every_steps": 2, "keep_last": 3},
        **({"lora": LORA} if kind == "lora" else {}),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The output folders of undisturbed runs."""
    folder, folders = tmp_path_factory.mktemp("states"), {}
    for kind, stage in CASES:
        of_case = recipe(folder, kind, stage)
        folders[kind, stage] = of_case.parent / "run"
        done = run_recipe(of_case, folders[kind, stage])
        assert done.code == 0, done.output
        assert "is lost in rounding for" in done.output
    return folders


def cut_back(run: Path, to: Path, step: int) -> None:
    """Copies a run as it was when a checkpoint had just been saved."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "export")
    (to / "finished.json").unlink()
    for saved in (to / "checkpoints").glob("step-*"):
        if saved.name > f"step-{step:08d}":
            shutil.rmtree(saved)
    (to / "checkpoints" / "latest").write_text(f"step-{step:08d}")


def number_types(value: Any) -> set[torch.dtype]:
    """Of all tensors with more than one number in a nested value."""
    if isinstance(value, torch.Tensor):
        return {value.dtype} if value.numel() > 1 else set()
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(number_types, value)) if isinstance(value, (list, tuple)) else set()


def saved_states(run: Path) -> list[Any]:
    files = sorted((run / "checkpoints" / f"step-{STEPS:08d}").glob("*optim_states.pt"))
    return [torch.load(f, weights_only=False)["optimizer_state_dict"] for f in files]


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_a_resumed_run_is_the_same_run(runs: Runs, tmp_path: Path, kind: str, stage: int) -> None:
    whole, resumed = runs[kind, stage], tmp_path / "resumed"
    cut_back(whole, resumed, 4)
    done = run_recipe(whole.parent / "recipe.yaml", resumed)
    assert done.code == 0 and f"at step 4 of {STEPS}" in done.output, done.output
    assert lines(resumed) == lines(whole)
    assert_same_bits(tensors_of(resumed / "export"), tensors_of(whole / "export"))
    first, second = saved_states(whole), saved_states(resumed)
    assert len(first) == len(second) == RANKS
    assert {t for state in first for t in number_types(state)} == {torch.bfloat16}


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_export_from_a_checkpoint(runs: Runs, tmp_path: Path, kind: str, stage: int) -> None:
    exported = export(runs[kind, stage], output=tmp_path / "export", say=lambda line: None)
    assert_same_bits(tensors_of(exported), tensors_of(runs[kind, stage] / "export"))


@pytest.mark.parametrize(("kind", "stage"), [("full", 2), ("full", 3)])
def test_another_number_of_ranks(runs: Runs, tmp_path: Path, kind: str, stage: int) -> None:
    """The universal format is read and written; a resumed run goes on nearly as before."""
    whole, resumed = runs[kind, stage], tmp_path / "resumed"
    cut_back(whole, resumed, 4)
    done = run_recipe(whole.parent / "recipe.yaml", resumed, ranks=1)
    assert done.code == 0 and "was saved by 2 rank(s), here are 1" in done.output, done.output
    expected, actual = lines(whole), lines(resumed)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        if one["step"] <= 4:
            assert one == other
        elif "loss" in one:
            assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)
    (states,) = saved_states(resumed)
    assert number_types(states) == {torch.bfloat16}


@pytest.mark.parametrize("stage", [2, 3])
def test_states_are_not_rounded_or_widened_by_a_resume(
    runs: Runs, tmp_path: Path, stage: int
) -> None:
    output = tmp_path / "resumed"
    cut_back(runs["full", stage], output, 4)
    other = recipe(tmp_path, "full", stage, "float32")
    (done,) = main_on_ranks("--config", other, "--output_dir", output)
    expected = "optimizer states (optim.states) is 'bfloat16', here it is None"
    assert done.code == 2 and expected in done.output


def test_weights_that_change_are_those_of_the_optimizer(runs: Runs) -> None:
    """At stage 3 the master copy in a checkpoint is what is exported."""
    state = saved_states(runs["full", 3])
    kept = torch.cat([group for rank in state for group in rank["fp32_flat_groups"]])
    exported = sum(t.numel() for t in tensors_of(runs["full", 3] / "export").values())
    assert kept.dtype == torch.bfloat16 and kept.numel() >= exported


def test_negative_control_float32_states_train_another_run(runs: Runs, tmp_path: Path) -> None:
    done = run_recipe(recipe(tmp_path, "full", 3, "float32"), tmp_path / "run")
    assert done.code == 0 and "lost in rounding" not in done.output
    assert json.dumps(lines(tmp_path / "run")) != json.dumps(lines(runs["full", 3]))
