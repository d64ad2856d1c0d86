"""`cpo-ds train` on one host and on two: quiet, with the ranks' exit codes, stopped by Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from hosts.simulated import SimulatedHosts
from launch import ENVIRONMENT, Run, finish, start
from repository import ROOT
from runs import newest, small_recipe, wait_for_step

COMMAND = [sys.executable, "-m", "cpo_ds.cli", "train"]
# What the tests of one host set too, here as a user says it to all hosts.
CARRIED = {k: v for k, v in ENVIRONMENT.items() if k not in ("PATH", "CUDA_VISIBLE_DEVICES")}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with so many steps that its runs can be stopped."""
    train = {"epochs": 99, "max_steps": 900, "eval_every_steps": 900}
    return small_recipe(tmp_path_factory.mktemp("train"), stage=2, train=train)


def stop(run: Run, output: Path) -> str:
    """Presses Ctrl-C after the first step; returns what was printed since."""
    wait_for_step(run, output, 1)
    os.kill(run.pid, signal.SIGINT)  # type: ignore[union-attr]
    done = finish(run)
    assert done.code == 4, done.output
    said = "cpo_ds: Ctrl-C: the step is finished and a checkpoint saved, then the run ends"
    assert done.output.count(said) == 1 and "A second Ctrl-C ends it now" in done.output
    assert done.output.count("asked to by Ctrl-C; its checkpoint is saved") == 1
    assert not {"Traceback", "INFO]", "ERROR]"} & set(done.output.split())
    assert (output / "checkpoints" / newest(output)).is_dir()
    return done.output


def test_on_this_host(recipe: Path) -> None:
    output = recipe.parent / "here"
    run = start([*COMMAND, "--gpus", "2", "--config", str(recipe), f"--output_dir={output}"])
    printed = stop(run, output)
    assert printed.startswith("cpo-ds train: no GPU on this machine, so --gpus 2 means 2 rank(s)")
    assert "on 2 rank(s)" in printed


@pytest.mark.multinode
def test_on_two_hosts(two_hosts: SimulatedHosts, recipe: Path) -> None:
    output = recipe.parent / "hosts"
    carried = recipe.parent / "environment"
    carried.write_text("".join(f"{name}={value}\n" for name, value in CARRIED.items()))
    command = [*COMMAND, "--hostfile", two_hosts.write_hostfile((1, 1)), "--config", recipe]
    options = {"DS_ENV_FILE": str(carried), "PYTHONPATH": str(ROOT), **CARRIED}
    run = two_hosts.start(0, [*command, f"--output_dir={output}"], **options)
    printed = stop(run, output)
    assert "cpo-ds train: 2 host(s) with 2 slots, checked in" in printed
    assert "on 2 rank(s)" in printed
    for host in range(2):
        assert not [p for p in two_hosts.processes(host) if "RANK" in p.environ()]
