"""A run that is asked to stop finishes its step on all ranks, saves, and resumes there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch import (
    TRAIN,
    deepspeed_command,
    finish,
    free_port,
    kill,
    main_on_ranks,
    start,
    start_ranks,
)
from repository import ROOT
from runs import LORA, lines, newest, rank_processes, small_recipe, wait_for_step, wait_until

from cpo_ds.ranks.stopping import StopRequest

SUPERVISE = ["bash", str(ROOT / "scripts" / "supervise.sh")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(tmp_path_factory.mktemp("stop"), lora=LORA, checkpoint={"every_steps": 100})


def test_stopped_again_and_again(recipe: Path, whole: list[dict[str, Any]]) -> None:
    """SIGTERM to one rank stops the run, then a time limit does; then it runs to the end."""
    output = recipe.parent / "stopped"
    arguments = ("--config", recipe, "--output_dir", output)
    run = start_ranks(*arguments)
    wait_for_step(run, output, 1)
    rank_processes(run)[1].send_signal(signal.SIGTERM)
    done = finish(run)
    assert done.code == 4, done.output
    assert done.output.count("cpo_ds: stopped") == 1 and "Traceback" not in done.output
    assert "asked to by SIGTERM; its checkpoint is saved" in done.output
    first = max(line["step"] for line in lines(output))
    assert first < 7 and newest(output) == f"step-{first:08d}"
    assert not (output / "export").exists() and not (output / "stacks").exists()

    for done in main_on_ranks(*arguments, "--train.max_hours=1e-6", ranks=2):
        assert done.code == 4, done.output
    assert newest(output) == f"step-{first + 1:08d}"
    for done in main_on_ranks(*arguments, ranks=2):
        assert done.code == 0, done.output
    assert lines(output) == whole


def test_a_request_in_the_last_step_ends_as_usual(recipe: Path, whole: list[Any]) -> None:
    output = recipe.parent / "last"
    shutil.copytree(recipe.parent / "whole", output)
    limit = "--train.max_hours=1e-6"
    (output / "checkpoints" / "latest").write_text("step-00000008")
    for done in main_on_ranks("--config", recipe, "--output_dir", output, limit, ranks=2):
        assert done.code == 0, done.output
    assert lines(output) == whole and (output / "export").is_dir()


def test_a_second_signal_ends_at_once(recipe: Path) -> None:
    output = recipe.parent / "twice"
    run = start_ranks("--config", recipe, "--output_dir", output)
    wait_for_step(run, output, 1)
    ranks = rank_processes(run)
    ranks[1].suspend()  # rank 0 waits for it inside a library
    ranks[0].send_signal(signal.SIGTERM)
    ranks[0].send_signal(signal.SIGTERM)  # the same request: launchers pass on what they get
    time.sleep(4)
    assert ranks[0].is_running() and ranks[0].status() != psutil.STATUS_ZOMBIE
    ranks[0].send_signal(signal.SIGTERM)
    wait_until(run, lambda: _is_over(ranks[0]))
    ranks[1].resume()
    done = finish(run)
    assert done.code == 128 + signal.SIGTERM, done.output
    assert "a second SIGTERM" in done.output


def _is_over(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_supervised_run_is_restarted_and_stopped(recipe: Path, whole: list[Any]) -> None:
    """The run restarts after a rank is killed; it saves and ends after SIGTERM to the script.

    It moves an earlier run aside at its first start alone.
    """
    output = recipe.parent / "supervised"
    (output / "checkpoints" / "step-00000009").mkdir(parents=True)
    (output / "metrics.jsonl").write_text("of an earlier run")
    options = ("--config", recipe, "--output_dir", output, "--checkpoint.every_steps=1")
    training = deepspeed_command(*options, "--checkpoint.resume=restart")
    command = [*SUPERVISE, "--restarts", "1", "--pause", "0", *training]
    run = start(command)
    wait_until(run, lambda: (output / "checkpoints" / "step-00000002").exists())
    first = rank_processes(run)
    first[1].kill()
    wait_until(run, lambda: any(p.pid != first[0].pid for p in rank_processes(run).values()))
    before = max(line["step"] for line in lines(output))
    wait_for_step(run, output, before + 1)
    os.kill(run.pid, signal.SIGTERM)
    done = finish(run)
    assert done.code == 4, done.output
    assert "restart 1 of 1" in done.output and "resumed from" in done.output
    assert "rank 1 on host" in done.output and "asked to by SIGUSR1" in done.output
    assert done.output.count(f"was moved to {output / 'earlier-1'}") == 1
    assert (output / "earlier-1" / "metrics.jsonl").read_text() == "of an earlier run"
    assert not (output / "earlier-2").exists()

    for done in main_on_ranks(*options, ranks=2):
        assert done.code == 0, done.output
    assert lines(output) == whole


def launcher_of_ranks(run: subprocess.Popen[str]) -> psutil.Process:
    """The process by which `deepspeed` starts the ranks; `deepspeed` says 0 if it is killed."""
    launchers = []
    for process in psutil.Process(run.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "deepspeed.launcher.launch" in process.cmdline():
                launchers.append(process)
    (launcher,) = launchers
    return launcher


@pytest.mark.parametrize("victim", ["deepspeed's launcher", "deepspeed"])
def test_a_run_whose_launcher_is_killed_is_not_called_done(
    victim: str, recipe: Path, whole: list[Any]
) -> None:
    """Ranks without a launcher save and end; the restarted run goes on to its end."""
    output = recipe.parent / victim.replace(" ", "-")
    options = ("--config", recipe, "--output_dir", output, "--checkpoint.every_steps=1")
    command = [*SUPERVISE, "--restarts", "1", "--pause", "0", *deepspeed_command(*options)]
    run = start(command)
    wait_until(run, lambda: (output / "checkpoints" / "step-00000002").exists())
    first, launcher = rank_processes(run), launcher_of_ranks(run)
    (launcher if "launcher" in victim else launcher.parent()).kill()
    done = finish(run)
    assert done.code == 0, done.output
    if "launcher" in victim:
        assert "exit code 0, but the run is not finished" in done.output
    assert "restart 1 of 1" in done.output and "resumed from" in done.output
    assert not any(process.is_running() for process in first.values())
    assert lines(output) == whole


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_ranks_whose_launcher_is_killed_save_and_end(
    launcher: str, recipe: Path, whole: list[Any]
) -> None:
    output = recipe.parent / f"orphans-of-{launcher}"
    options = ("--config", recipe, "--output_dir", output)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += [f"--master-port={free_port()}", str(TRAIN), *map(str, options)]
    run = start(torchrun if launcher == "torchrun" else deepspeed_command(*options))
    wait_for_step(run, output, 2)
    ranks = rank_processes(run)
    (psutil.Process(run.pid) if launcher == "torchrun" else launcher_of_ranks(run)).kill()
    _, left = psutil.wait_procs(ranks.values(), timeout=60)
    assert not left, finish(run, 1).output
    done = finish(run)
    assert done.output.count("is gone; saving and ending.") == 1, done.output
    saved = max(line["step"] for line in lines(output))
    assert 2 <= saved < 8 and newest(output) == f"step-{saved:08d}"
    for done in main_on_ranks(*options, ranks=2):
        assert done.code == 0, done.output
    assert lines(output) == whole


def test_a_run_outlives_the_shell_that_started_it(recipe: Path) -> None:
    output = recipe.parent / "outlives"
    training = f"{sys.executable} {TRAIN} --config {recipe} --output_dir {output}"
    done = finish(start(["sh", "-c", f"nohup setsid {training} --train.max_steps=2 &"]))
    assert (output / "finished.json").exists(), done.output


# A run's mark (its step and its start) -> the exit code of a start that leaves no other mark.
MARKS: dict[str, tuple[dict[str, Any] | None, int]] = {
    "none": (None, 5),
    "of another start": ({"step": 8, "start": "another-1-2"}, 5),
    "of a start without a name": ({"step": 8, "start": None}, 0),  # mpirun carried none to it
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_launcher_s_0_counts_only_with_a_mark_of_this_start(mark: str, tmp_path: Path) -> None:
    content, code = MARKS[mark]
    output, recipe = tmp_path / "out", small_recipe(tmp_path)
    output.mkdir()
    if content:
        (output / "finished.json").write_text(json.dumps(content))
    arguments = ("--config", str(recipe), f"--output_dir={output}")
    command = ["true", "cpo_ds/train.py", *arguments]  # as if ended before there is any rank
    done = supervise("--restarts", "1", "--pause", "0", *command)
    assert done.returncode == code, done.stderr
    assert ("1 restart(s) did not help" in done.stderr) == (code == 5)


@pytest.mark.parametrize(("named", "code"), [(True, 0), (False, 5)])
def test_a_run_by_cpo_ds_train_is_one_too(named: bool, code: int, tmp_path: Path) -> None:
    """Its options for the launch are not those of the run."""
    output, recipe, program = tmp_path / "out", small_recipe(tmp_path), tmp_path / "cpo-ds"
    output.mkdir()
    program.write_text("#!/bin/sh\n")  # as if ended before there is any rank
    program.chmod(0o755)
    if named:
        (output / "finished.json").write_text(json.dumps({"step": 8, "start": None}))
    options = ("--gpus", "2", "--config", str(recipe), "--master-port=1", f"--output_dir={output}")
    done = supervise("--restarts", "0", str(program), "train", *options)
    assert done.returncode == code, done.stderr


def test_help_of_a_run_is_no_run() -> None:
    assert supervise("--restarts", "0", "true", "cpo_ds/train.py", "--help").returncode == 0


def supervise(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SUPERVISE, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_what_is_no_fault_is_not_restarted(code: int) -> None:
    done = supervise("--pause", "0", "bash", "-c", f"echo started; exit {code}")
    assert (done.returncode, done.stdout) == (code, "started\n")


def test_restarts_are_bounded() -> None:
    done = supervise("--restarts", "2", "--pause", "0", "bash", "-c", "echo started; exit 247")
    assert (done.returncode, done.stdout) == (247, "started\n" * 3)
    assert "2 restart(s) did not help" in done.stderr


@pytest.mark.parametrize(("options", "pause"), [((), 10), (("--pause", "7"), 7)])
def test_a_start_that_failed_soon_is_repeated_after_a_while(
    options: tuple[str, ...], pause: int
) -> None:
    run = start([*SUPERVISE, *options, "false"])
    assert run.stdout is not None
    assert run.stdout.readline() == f"supervise.sh: exit code 1; restart 1 of 3 in {pause} s.\n"
    kill(run)
    run.communicate()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--restarts",),
        ("--restarts", "x"),
        ("--wait", "1"),
        ("--min-hosts", "two"),
        ("echo", "--hostfile", "nowhere"),
        ("echo", "--hostfile=nowhere"),
        ("echo", "-H"),
    ],
)
def test_wrong_use_of_the_script(arguments: tuple[str, ...]) -> None:
    done = supervise(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("supervise.sh: ")


def test_no_limit_never_asks() -> None:
    assert StopRequest().reason is None
    assert StopRequest(max_hours=1).reason is None
    soon = StopRequest(max_hours=1e-9)
    time.sleep(0.01)
    assert soon.reason == "train.max_hours (1e-09)"
