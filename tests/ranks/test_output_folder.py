"""Output folders that cannot be written, or that another run holds."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from launch import main_on_ranks, on_ranks
from runs import lines, run_recipe, small_recipe
from small_disk import Disk
from workers import training


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(
        tmp_path_factory.mktemp("folder"),
        data={"directions": ["en-de"]},
        batch={"pairs": 8},
        train={"max_steps": 3, "eval_every_steps": 2},
        checkpoint={"every_steps": 1, "export": False},
    )


def test_a_read_only_folder(recipe: Path, disk: Disk) -> None:
    output = disk.folder / "run"
    output.mkdir()
    disk.remount("ro")
    done = run_recipe(recipe, output)
    assert done.code == 2, done.output
    assert f"output_dir {output} cannot be written: Read-only file system" in done.output
    disk.remount("rw")
    assert list(output.iterdir()) == []


def test_a_named_checkpoint_that_is_not_there(recipe: Path, tmp_path: Path) -> None:
    absent = tmp_path / "other" / "checkpoints" / "step-00000009"
    done = run_recipe(recipe, tmp_path / "run", "--checkpoint.resume", absent)
    assert done.code == 2 and f"checkpoint.resume names {absent}" in done.output, done.output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_two_runs_in_one_folder(recipe: Path, tmp_path: Path) -> None:
    output, steps = tmp_path / "run", 12
    same = ["--config", str(recipe), "--output_dir", str(output)]
    same += ["--train.epochs", "4", "--train.max_steps", str(steps)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(main_on_ranks, *same)
        while not (output / "metrics.jsonl").exists():
            assert not first.done(), first.result()
            time.sleep(0.002)
        holder = (output / "lock").read_text()
        (second,) = on_ranks(training.main_without_patience, [*same, "--train.seed", "9"])
        assert not first.done(), "the first was over before the second was refused"
        (done,) = first.result()
    assert second.code == 2 and "Traceback" not in second.output, second.output
    assert f"another run is writing to {output} ({holder})" in second.output
    assert holder.startswith("process ") and " on host " in holder
    assert done.code == 0, done.output
    steps_written = [line["step"] for line in lines(output) if "loss" in line]
    assert steps_written == list(range(1, steps + 1))
    assert yaml.safe_load((output / "config.yaml").read_text())["train"]["seed"] != 9
