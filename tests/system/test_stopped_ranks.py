"""A rank whose process is stopped is named in every phase of a run, by all other ranks together."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path

import pytest
from launch import finish, main_on_ranks, on_ranks, start_ranks
from runs import lines, rank_processes, small_recipe, wait_for_step
from workers import stopped

HOST = socket.gethostname()
SETTINGS = {"loss": {"name": "dpo"}}  # has a pass over the pairs before training
MINUTES = 0.1

# Phase -> a function that is called in it, and whether only rank 0 calls it.
PHASES = {
    "finding each other": ("cpo_ds.run.session.call_roll", False),
    "joining": ("deepspeed.init_distributed", False),
    "agreeing": ("cpo_ds.run.session.with_precision", False),
    "locking": ("cpo_ds.run.session.hold_folder", True),
    "reading and tokenizing": ("cpo_ds.data.pair_inputs.assemble", True),
    "verifying": ("cpo_ds.checkpoint.resume.damage", False),
    "converting": ("cpo_ds.run.build.convert", True),
    "loading": ("cpo_ds.run.build.load_policy", False),
    "the engine": ("cpo_ds.run.build.Engine", False),
    "the reference pass": ("cpo_ds.run.build.with_reference_logps", False),
    "exporting": ("cpo_ds.run.session.export_run", False),
}
CASES = [  # of all phases, ranks and numbers of ranks
    ("finding each other", 0, 3),
    ("finding each other", 1, 2),
    ("agreeing", 1, 2),
    ("reading and tokenizing", 1, 2),
    ("exporting", 0, 2),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(
        tmp_path_factory.mktemp("stopped"), stage=2, train={"max_steps": 1}, **SETTINGS
    )


@pytest.mark.parametrize(("phase", "rank", "ranks"), CASES)
def test_a_stopped_rank_is_named_in_every_phase(
    phase: str, rank: int, ranks: int, recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = ["--config", str(recipe), "--output_dir", str(output)]
    if phase in ("verifying", "converting"):
        saving_ranks = ranks - (phase == "converting")
        for done in main_on_ranks(*arguments, "--checkpoint.export=false", ranks=saving_ranks):
            assert done.code == 0, done.output
        arguments.append("--train.max_steps=2")
    arguments.append(f"--train.stall_minutes={MINUTES}")
    where, is_of_first = PHASES[phase]
    inputs = [where, rank, is_of_first, str(tmp_path), *arguments]
    done = on_ranks(stopped.stop_at, inputs, ranks=ranks, timeout=60)
    others = [end for number, end in enumerate(done) if number != rank]
    assert 5 in {end.code for end in others} <= {5, -9}, done  # the first one ends the others
    said = "".join(end.output for end in others)
    assert "Traceback" not in said
    assert re.search(names(rank), said), said


def test_a_run_that_is_suspended_as_a_whole_goes_on(tmp_path: Path) -> None:
    """As by Ctrl-Z, for longer than any limit of the watch."""
    recipe, output = (
        small_recipe(tmp_path, stage=2, train={"max_steps": 40, "epochs": 9}),
        tmp_path / "out",
    )
    options = ("--config", recipe, "--output_dir", output, f"--train.stall_minutes={MINUTES}")
    run = start_ranks(*options)
    wait_for_step(run, output, 1)
    ranks = rank_processes(run).values()
    for process in ranks:
        process.suspend()
    time.sleep(60 * MINUTES + 8)
    for process in ranks:
        process.resume()
    done = finish(run)
    assert done.code == 0, done.output
    assert lines(output)[-1]["step"] == 40


def names(rank: int) -> str:
    """A pattern of messages that name a rank as the one that is lost or hangs."""
    process = rf"rank {rank} on host {HOST} \(process \d+\) ended or cannot be reached"
    missing = rf"error:( \(rank \d\))? rank {rank}\b.* did not join"
    return rf"stopped: {process}|Behind the others: rank {rank}\. |{missing}"
