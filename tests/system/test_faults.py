"""Ranks that die or hang: the others end soon and name them, and the run goes on when restarted."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from launch import (
    ForkedRanks,
    deepspeed_command,
    finish,
    main_on_ranks,
    on_ranks,
    start,
    start_ranks,
)
from runs import LORA, lines, rank_processes, small_recipe, wait_for_step
from torture import torture
from workers import faults

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(tmp_path_factory.mktemp("faults"), train={"max_steps": 400, "epochs": 40})


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_by_the_others(rank: int, recipe: Path) -> None:
    """Rank 0 is the hard case, since the store for the ranks' signs of life goes with it.

    It is killed under the launcher, which ends with the signal's exit code.
    """
    output = recipe.parent / f"killed-{rank}"
    options = ("--config", recipe, "--output_dir", output)
    by_launcher = rank == 0
    run = (
        start(deepspeed_command(*options, ranks=3))
        if by_launcher
        else start_ranks(*options, ranks=3)
    )
    wait_for_step(run, output, 3)
    ranks, killed_at = rank_processes(run), time.monotonic()
    ranks[rank].kill()
    done = finish(run)
    assert time.monotonic() - killed_at < 60
    assert done.code == 256 - 9, done.output
    said = [line for line in done.output.splitlines() if "cpo_ds: stopped" in line]
    assert len(said) == 1, done.output
    assert f"rank {rank} on host {HOST} (process {ranks[rank].pid}) ended" in said[0]
    assert "Traceback" not in done.output
    assert not any(process.is_running() for process in ranks.values())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_failed_for_the_loss_of_another_ends_at_once(rank: int, recipe: Path) -> None:
    """It waits for nothing but the reason; the grace is for ranks that may end by themselves."""
    output = recipe.parent / f"lost-{rank}"
    options = ["--config", str(recipe), "--output_dir", str(output)]
    run = ForkedRanks(faults.die_without_grace, [3, rank, *options], ranks=2)
    done = run.wait(timeout=90, patience=50)  # less than the minute that a main thread waits
    assert done[1 - rank].code == 5, done
    assert f"rank {rank} on host {HOST} (process " in done[1 - rank].output


def test_a_hung_rank_is_found_and_all_stacks_are_written(recipe: Path) -> None:
    output = recipe.parent / "hung"
    options = ["--config", str(recipe), "--output_dir", str(output), "--train.stall_minutes=0.05"]
    done = on_ranks(faults.hang, [3, *options], ranks=2, timeout=100)
    assert {rank.code for rank in done} <= {5, -9} and 5 in {rank.code for rank in done}
    said = [t for rank in done for t in rank.output.splitlines() if "cpo_ds: stopped" in t]
    assert (
        len(said) == 1 and "no rank made progress for 0.05 minutes (train.stall_minutes)" in said[0]
    )
    assert re.search(rf"rank 1 on host {HOST} \(process \d+\) at trainer.py:\d+ in train", said[0])
    for rank in (0, 1):
        stacks = (output / "stacks" / f"rank_{rank}.txt").read_text()
        assert "most recent call first" in stacks and "trainer.py" in stacks
    assert "plan_or_hang" in (output / "stacks" / "rank_1.txt").read_text()


# Phase -> the function that hangs before the first step, its rank, and the place that is named.
EARLY = {
    "reading": ("cpo_ds.data.pair_inputs.assemble", 0, "pair_inputs.py:"),
    "loading": ("cpo_ds.run.build.load_policy", 1, "build.py:"),
    "the engine": ("cpo_ds.run.build.Engine", 0, "build.py:"),
    "verifying": ("cpo_ds.checkpoint.resume.damage", 1, "resume.py:"),
}


@pytest.mark.parametrize("phase", EARLY)
def test_a_rank_that_hangs_before_the_first_step_is_named(phase: str, tmp_path: Path) -> None:
    where, rank, position = EARLY[phase]
    recipe, output = small_recipe(tmp_path, stage=2, train={"max_steps": 1}), tmp_path / "out"
    options = ["--config", str(recipe), "--output_dir", str(output)]
    if phase == "verifying":
        for done in main_on_ranks(*options, ranks=2):
            assert done.code == 0, done.output
        options += ["--train.max_steps=2"]
    options += ["--train.stall_minutes=0.1"]
    done = on_ranks(faults.hang_before_training, [where, rank, *options], ranks=2, timeout=60)
    assert 5 in {finished.code for finished in done}, done
    said = [t for one in done for t in one.output.splitlines() if "cpo_ds: stopped" in t]
    assert len(said) == 1 and "no rank made progress for 0.1 minutes" in said[0], done
    assert f"Behind the others: rank {rank}. " in said[0]
    assert re.search(rf"rank {rank} on host {HOST} \(process \d+\) at {position}\d+ in ", said[0])
    stacks = (output / "stacks" / f"rank_{rank}.txt").read_text()
    assert "call_or_hang" in stacks


def test_a_start_and_an_export_longer_than_the_limit_are_no_hang(tmp_path: Path) -> None:
    """A run that reads rows or moves bytes all the time is not stopped."""
    recipe = small_recipe(tmp_path, train={"max_steps": 1})
    options = ["--config", str(recipe), "--output_dir", str(tmp_path / "out")]
    options += ["--train.stall_minutes=0.1"]
    for done in on_ranks(faults.start_and_export_slowly, [8.0, *options], ranks=2):
        assert done.code == 0, done.output
    assert (tmp_path / "out" / "export" / "model.safetensors").exists()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_group_of_ranks_gives_up_before_the_watch_does(tmp_path: Path, stage: int) -> None:
    recipe = small_recipe(
        tmp_path,
        train={"max_steps": 1, "stall_minutes": 3000},
        stage=stage,
    )
    options = [str(tmp_path / "limits"), "--config", str(recipe)]
    options += ["--output_dir", str(tmp_path / "out")]
    for done in on_ranks(faults.write_limits, options, ranks=2):
        assert done.code == 0, done.output
    for rank in (0, 1):
        limits = json.loads((tmp_path / f"limits-{rank}.json").read_text())
        # all ranks, the program's own group and DeepSpeed's; those to come; the store
        assert len(limits) >= 6 and min(limits) > 3000, limits


def test_a_clock_that_is_set_ends_no_run(recipe: Path) -> None:
    output = recipe.parent / "clock"
    options = ["--config", str(recipe), "--output_dir", str(output), "--train.max_steps=4"]
    inputs = [2, str(recipe.parent), *options, "--train.stall_minutes=1"]
    for done in on_ranks(faults.train_while_the_clock_is_set, inputs, ranks=2):
        assert done.code == 0, done.output
    assert lines(output)[-1]["step"] == 4


def test_a_stopped_process_is_named(recipe: Path) -> None:
    """A suspended process gives no sign of life; the rank that keeps the store is the hard case."""
    output = recipe.parent / "suspended"
    options = ["--config", str(recipe), "--output_dir", str(output)]
    _, second = on_ranks(faults.suspend, [2, *options], ranks=2, timeout=60)
    assert second.code == 5, second.output
    assert re.search(rf"rank 0 on host {HOST} \(process \d+\) ended or cannot", second.output)


def test_a_rank_whose_connection_broke_is_named_sooner(recipe: Path) -> None:
    output = recipe.parent / "broken"
    options = ["--config", str(recipe), "--output_dir", str(output)]
    worker = faults.suspend_with_a_broken_connection
    first, _ = on_ranks(worker, [2, *options], ranks=2, timeout=60)
    assert first.code == 5, first.output
    assert re.search(r"rank 1 on host host-1 \(process \d+\) ended or cannot", first.output)


def test_an_error_of_one_rank_alone_is_told_and_ends_all(recipe: Path) -> None:
    output = recipe.parent / "error"
    options = ["--config", str(recipe), "--output_dir", str(output)]
    first, second = on_ranks(faults.fail_alone, [2, 1, "bug", *options], ranks=2, timeout=90)
    assert first.code == 5 and second.code == 1
    said, _, last = first.output.partition("cpo_ds: stopped: rank 1 on host ")
    assert "Traceback" not in said and last.rstrip().endswith("ValueError: of rank 1 alone")
    assert "plan_or_fail" in last and str(output / "logs" / "rank_1.txt") in last
    assert "Traceback" not in second.output  # the console is rank 0's
    logs = [(output / "logs" / f"rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert all("ValueError: of rank 1 alone" in log for log in logs)
    assert "step 1/" in logs[0] and "step 1/" not in logs[1]


def test_an_error_of_rank_0_alone_is_told_once_and_ends_all(recipe: Path) -> None:
    output = recipe.parent / "error-0"
    options = ["--config", str(recipe), "--output_dir", str(output)]
    first, second = on_ranks(faults.fail_alone, [2, 0, "bug", *options], ranks=2, timeout=90)
    assert (first.code, second.code) in [(1, 5), (1, -9)]  # rank 0 is waited for by nobody
    assert first.output.count("ValueError: of rank 0 alone") == 1
    assert "stopped: rank" not in first.output


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("limit", "advice"), [("memory", "Lower batch.tokens_per_rank"), ("files", "ulimit -n")]
)
def test_a_limit_that_one_rank_meets_is_a_paragraph(
    rank: int, limit: str, advice: str, recipe: Path
) -> None:
    output = recipe.parent / f"{limit}-{rank}"
    options = ["--config", str(recipe), "--output_dir", str(output)]
    done = on_ranks(faults.fail_alone, [2, rank, limit, *options], ranks=2, timeout=90)
    codes = {one.code for one in done}  # the launcher kills the other rank once one ends
    assert 2 in codes and codes <= {2, -9}, done
    said = "".join(one.output for one in done)
    assert "Traceback" not in said and said.count(advice) == 1, said


def test_kills_at_random_leave_no_trace(tmp_path: Path) -> None:
    """Kills a run four times; tests/support/torture.py kills one as often as you like."""
    kills, steps = 4, 10
    made, whole, killed = torture(
        tmp_path, kills, 3, steps=steps, lora=True, background=True, by_launcher=False
    )
    assert len(made) >= kills
    assert lines(killed) == lines(whole)
    assert [line["step"] for line in lines(killed) if "loss" in line] == list(range(1, steps + 1))
    (expected,) = (whole / "export").glob("*.safetensors")
    exported = safetensors.torch.load_file(killed / "export" / expected.name)
    for name, tensor in safetensors.torch.load_file(expected).items():
        assert torch.equal(exported[name], tensor)


def test_saving_in_the_background_saves_the_same(tmp_path: Path) -> None:
    recipe = small_recipe(
        tmp_path, lora=LORA, checkpoint={"every_steps": 1, "keep_last": 4}, train={"max_steps": 4}
    )
    outputs = {}
    for background in ("true", "false"):
        outputs[background] = tmp_path / background
        options = ("--output_dir", outputs[background], f"--checkpoint.in_background={background}")
        for done in main_on_ranks("--config", recipe, *options, ranks=2):
            assert done.code == 0, done.output
    assert lines(outputs["true"]) == lines(outputs["false"])
    for step in range(1, 5):
        files: list[dict[str, Any]] = [
            json.loads((output / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())[
                "files"
            ]
            for output in outputs.values()
        ]
        assert files[0].keys() == files[1].keys()
    last = [output / "checkpoints" / "step-00000004" for output in outputs.values()]
    for name in files[0]:
        if name.endswith(".pt"):
            one, other = (torch.load(path / name, weights_only=False) for path in last)
            assert _same(one, other), name


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        skipped = ("ds_config",)
        return one.keys() == other.keys() and all(
            _same(one[key], other[key]) for key in one if key not in skipped
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other)
