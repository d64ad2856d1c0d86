"""A run resumes on another number of ranks with the same pairs, and the same losses to 1e-4.

For each case a run on its own number of ranks is cut back to a checkpoint in its middle, and that
is resumed on another number. A third run then resumes from what the second one saved.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import save_tiny_model
from launch import main_on_ranks, write_recipe

STEPS = 6
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}
CASES = [
    (kind, stage, before, after)
    for kind in ("full", "lora")
    for stage in (2, 3)
    for before, after in ((2, 1), (2, 3), (1, 2))
]


def ways(case: tuple[str, int, int, int]) -> str:
    kind, stage, before, after = case
    return f"{kind}, ZeRO-{stage}, {before} -> {after}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reshard")
    save_tiny_model(folder / "model", tie_word_embeddings=True, hidden_size=64, head_dim=16)
    for stage in (0, 1, 2, 3):
        zero: dict[str, Any] = {"stage": stage}
        if stage == 3:
            zero["stage3_param_persistence_threshold"] = 0
        (folder / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": zero}))
    return folder


def recipe(folder: Path, kind: str, stage: int) -> Path:
    values: dict[str, Any] = {
        "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
        "data": {"format": "sample", "directions": ["en-de", "zh-en"]},
        "batch": {"pairs": 6, "tokens_per_rank": 1024},
        "train": {"max_steps": STEPS, "epochs": 2},
        "optim": {"learning_rate": 1e-3},
        "checkpoint": {"every_steps": 2, "keep_last": 3},
        "logging": {"tensorboard": False},
        "deepspeed": str(folder / f"zero{stage}.json"),
    }
    name = f"{kind}-{stage}"
    return write_recipe(folder / name, values | ({"lora": LORA} if kind == "lora" else {}))


def run(recipe: Path, output: Path, ranks: int, *options: str) -> str:
    done = main_on_ranks("--config", recipe, "--output_dir", output, *options, ranks=ranks)
    assert [rank.code for rank in done] == [0] * ranks, done[0].output
    return done[0].output


def cut_back(output: Path, to: Path, step: int) -> None:
    """Copies a run as it was when a checkpoint had just been saved."""
    shutil.copytree(output, to)
    shutil.rmtree(to / "export")
    for saved in (to / "checkpoints").glob("*step-*"):
        if saved.name > f"step-{step:08d}":
            shutil.rmtree(saved)
    (to / "checkpoints" / "latest").write_text(f"step-{step:08d}")


def losses(output: Path) -> list[float]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[tuple[str, int, int], Path]:
    """(kind, stage, ranks) -> the output folder of an undisturbed run."""
    runs = {}
    for kind, stage, ranks in sorted({case[:3] for case in CASES}):
        runs[kind, stage, ranks] = folder / f"{kind}-{stage}-on-{ranks}"
        run(recipe(folder, kind, stage), runs[kind, stage, ranks], ranks)
    return runs


@pytest.mark.parametrize("case", CASES, ids=ways)
def test_another_number_of_ranks(
    folder: Path,
    uninterrupted: dict[tuple[str, int, int], Path],
    case: tuple[str, int, int, int],
    record_property: Any,
) -> None:
    kind, stage, before, after = case
    whole = uninterrupted[kind, stage, before]
    output = folder / ways(case).replace(" ", "")
    cut_back(whole, output, 2)
    said = run(recipe(folder, kind, stage), output, after)
    assert f"was saved by {before} rank(s), here are {after}" in said
    assert "resumed from" in said and "at step 2 of 6" in said
    expected, resumed = losses(whole), losses(output)
    record_property("losses", [expected[2:], resumed[2:]])
    assert len(resumed) == STEPS
    assert resumed[:2] == expected[:2]
    assert resumed[2:] == pytest.approx(expected[2:], rel=1e-4)
    assert not list((output / "checkpoints").glob("universal-*"))  # gone with the next save

    if after != 3:
        return
    again = folder / f"{output.name}-again"
    cut_back(output, again, 4)
    said = run(recipe(folder, kind, stage), again, after)
    assert "at step 4 of 6" in said and "universal" not in said
    assert losses(again) == resumed  # saved after a conversion, and exact again


def test_stage_0_splits_nothing(folder: Path) -> None:
    whole = folder / "stage0"
    run(recipe(folder, "full", 0), whole, 1)
    cut_back(whole, folder / "stage0-on-2", 2)
    said = run(recipe(folder, "full", 0), folder / "stage0-on-2", 2)
    assert "at step 2 of 6" in said and "universal" not in said
    assert losses(folder / "stage0-on-2") == pytest.approx(losses(whole), rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (2, 0)])
def test_another_stage_is_refused(
    folder: Path, uninterrupted: dict[tuple[str, int, int], Path], before: int, after: int
) -> None:
    whole = uninterrupted["full", before, 1]
    kept = sorted(file for file in whole.rglob("*") if file.name != "lock")
    stage = f"--deepspeed={folder}/zero{after}.json"
    (done,) = main_on_ranks(
        *("--config", recipe(folder, "full", before), "--output_dir", whole, stage),
        "--train.max_steps=7",
    )
    assert done.code == 2
    message = done.output[done.output.index("cpo_ds: error") :]
    assert f"saved at ZeRO stage {before}" in message and "cpo-ds export" in message
    assert "Traceback" not in done.output
    assert sorted(file for file in whole.rglob("*") if file.name != "lock") == kept


def test_a_run_that_got_further_than_it_should(folder: Path, uninterrupted: Any) -> None:
    """A run with fewer steps than its checkpoint is refused."""
    output = uninterrupted["full", 3, 1]
    fewer = ("--output_dir", output, "--train.max_steps=4")
    (done,) = main_on_ranks("--config", recipe(folder, "full", 3), *fewer)
    assert done.code == 2 and "Traceback" not in done.output
    assert "is of step 6, but train.epochs and train.max_steps make a run of 4" in done.output
    assert "changed since step-00000006 was saved: train.max_steps: 6 -> 4" in done.output
