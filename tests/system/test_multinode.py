"""Runs over two hosts, each with an address, a name, processes and an sshd of its own.

No setting tells the ranks about the network; they find each other as on a real cluster.
"""

from __future__ import annotations

import contextlib
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
from hosts.simulated import SimulatedHosts, reason_against, simulated_hosts
from launch import ENVIRONMENT, TRAIN, finish
from repository import ROOT
from runs import lines, small_recipe, wait_for_step

pytestmark = pytest.mark.multinode
# What the tests of one host set too, here as a user says it to all hosts.
CARRIED = {k: v for k, v in ENVIRONMENT.items() if k not in ("PATH", "CUDA_VISIBLE_DEVICES")}
AS_ROOT = "--launcher_args=--allow-run-as-root"  # what mpirun asks for
LAUNCHERS = {"pdsh": ("--launcher", "pdsh"), "openmpi": ("--launcher", "openmpi", AS_ROOT)}
SUPERVISE = ("bash", "scripts/supervise.sh", "--pause", "0")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with so many steps that its runs can still be stopped by a login to a host."""
    folder = tmp_path_factory.mktemp("multinode")
    train = {"epochs": 2, "max_steps": 16, "eval_every_steps": 8}
    return small_recipe(folder, checkpoint={"every_steps": 1}, train=train)


def start(
    hosts: SimulatedHosts,
    recipe: Path,
    output: Path,
    *options: str,
    slots: tuple[int, ...] = (1, 1),
    start_on: int = 0,
    supervise: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """Starts a run on the first hosts, one for each of `slots`."""
    carried = recipe.parent / "environment"
    values = CARRIED | {"TEAM": "blue"}
    carried.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q", *options]
    launcher += ["--hostfile", str(hosts.write_hostfile(slots))]
    script = [TRAIN, "--config", recipe, "--output_dir", output]
    command = [*supervise, *launcher, *script]
    return hosts.start(start_on, command, DS_ENV_FILE=str(carried), **CARRIED)


def ranks_on(hosts: SimulatedHosts, host_index: int) -> list[psutil.Process]:
    names = {"RANK", "OMPI_COMM_WORLD_RANK"}
    return [p for p in hosts.processes(host_index) if names & p.environ().keys()]


def skip_without(launcher: str) -> None:
    if launcher == "openmpi" and shutil.which("mpirun") is None:
        pytest.skip("needs Debian's openmpi-bin")


def assert_begins_like(output: Path, whole: list[dict[str, Any]], steps: int) -> None:
    """Checks that the run so far equals that of one host, bit for bit."""
    written = lines(output)
    assert written == whole[: len(written)]
    assert written[-1]["step"] >= steps


def assert_ends_like(output: Path, whole: list[dict[str, Any]]) -> None:
    """Checks pairs exactly and numbers to 1e-4, since fewer ranks sum in another order."""
    written = lines(output)
    assert [line.get("pairs") for line in written] == [line.get("pairs") for line in whole]
    for line, expected in zip(written, whole, strict=True):
        assert flat(line) == pytest.approx(flat(expected), rel=1e-4, abs=1e-4)


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a line without nesting, and without those that depend on the number of ranks."""
    numbers = {}
    for name, value in values.items():
        inner = flat(value) if isinstance(value, dict) else {"": value}
        numbers |= {f"{name}/{rest}": number for rest, number in inner.items()}
    return {name: number for name, number in numbers.items() if name != "padded_tokens/"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_hosts_train_as_one_and_one_goes_on_alone(
    two_hosts: SimulatedHosts, recipe: Path, whole: list[dict[str, Any]], launcher: str
) -> None:
    """First undisturbed; then the ranks of one host are killed, and the other host goes on."""
    skip_without(launcher)
    options = LAUNCHERS[launcher]
    undisturbed = recipe.parent / f"undisturbed-{launcher}"
    done = finish(start(two_hosts, recipe, undisturbed, *options))
    assert done.code == 0, done.output
    assert lines(undisturbed) == whole

    output = recipe.parent / f"killed-{launcher}"
    run = start(two_hosts, recipe, output, *options)
    wait_for_step(run, output, 4)
    [rank] = ranks_on(two_hosts, 1)
    rank.kill()
    done = finish(run)
    assert done.code not in (0, 2, 3, 4), done.output
    assert not ranks_on(two_hosts, 0) + ranks_on(two_hosts, 1)
    assert_begins_like(output, whole, steps=4)

    done = finish(start(two_hosts, recipe, output, *options, slots=(1,)))
    assert done.code == 0, done.output
    assert "resumed from" in done.output and "on 1 rank(s)" in done.output
    assert_ends_like(output, whole)


@pytest.mark.timeout(600)
def test_a_run_goes_on_over_another_launcher_and_on_fewer_hosts(
    tmp_path: Path, recipe: Path, whole: list[dict[str, Any]]
) -> None:
    """OpenMPI runs until SIGTERM saves on both hosts, then pdsh until a host loses power.

    The other host finishes the run."""
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    skip_without("openmpi")
    output = recipe.parent / "run"
    # Started on the third host, on which no rank runs: a login node, say.
    supervised: dict[str, Any] = {"start_on": 2, "supervise": SUPERVISE}
    with simulated_hosts(tmp_path, 3) as hosts:
        run = start(hosts, recipe, output, *LAUNCHERS["openmpi"], **supervised)
        wait_for_step(run, output, 1)
        [rank] = ranks_on(hosts, 1)
        assert rank.environ()["TEAM"] == "blue"
        os.kill(run.pid, signal.SIGTERM)
        done = finish(run)
        assert done.code == 4 and "asked to by SIGUSR1" in done.output, done.output
        stopped_at = lines(output)[-1]["step"]
        assert f"step-{stopped_at:08}" in done.output
        assert not ranks_on(hosts, 0) + ranks_on(hosts, 1)
        assert_begins_like(output, whole, steps=1)

        run = start(hosts, recipe, output, **supervised)
        wait_for_step(run, output, stopped_at + 2)
        [rank] = ranks_on(hosts, 1)
        assert rank.environ()["TEAM"] == "blue"
        hosts.kill(1)
        assert_begins_like(output, whole, steps=stopped_at + 2)
        done = finish(run)
    assert done.code == 0, done.output
    assert f"resumed from {output / 'checkpoints' / f'step-{stopped_at:08}'}" in done.output
    assert "left out: host-b" in done.output and "restart 1 of 3" in done.output
    assert "on 1 rank(s)" in done.output
    assert "host-a: step 16/16" in done.output  # on host-a, not on the script's host
    assert_ends_like(output, whole)


def test_a_host_that_is_back_is_used_again(two_hosts: SimulatedHosts) -> None:
    """With fewer hosts than --min-hosts, nothing is started."""
    hostfile = two_hosts.write_hostfile([1, 3])
    command = ["--min-hosts", "2", "bash", "-c", 'echo started; cat "$2"; exit 7', "run"]
    two_hosts.cut(1)
    try:
        run = two_hosts.start(0, [*SUPERVISE, *command, "--hostfile", hostfile])
        assert run.stdout is not None
        said = ""
        while "not started" not in said:
            said += (line := run.stdout.readline())
            assert line, said
    finally:
        two_hosts.mend(1)
    said += finish(run).output
    assert run.returncode == 7
    assert said.count("left out: host-b") == 1 and "1 of 2 hosts can take part: host-a" in said
    assert said.count("started\nhost-a slots=1\nhost-b slots=3\n") == 3  # first, restarts 2 and 3


def test_nothing_of_the_hosts_is_left(tmp_path: Path) -> None:
    """Nothing is left even if the program that made the hosts is killed."""
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    devices = sorted(os.listdir("/sys/class/net"))
    with pytest.raises(ZeroDivisionError), simulated_hosts(tmp_path / "raised") as hosts:
        hosts.limit(100, 1)
        hosts.start(1, ["setsid", "sleep", "1000"], MADE_FOR=str(tmp_path))
        assert len(processes_of(tmp_path)) > 4  # two hosts' first processes and sshds, sleep
        1 / 0  # noqa: B018
    assert processes_of(tmp_path) == []

    script = """if True:
        import pathlib, sys, time
        from hosts.simulated import simulated_hosts
        with simulated_hosts(pathlib.Path(sys.argv[1])):
            print("made", flush=True)
            time.sleep(100)"""
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    folder = ROOT / "benchmarks"  # `python -c` imports from the folder that it starts in
    maker = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None and maker.stdout.readline() == "made\n"
    assert len(processes_of(tmp_path)) > 4
    maker.kill()
    maker.communicate()
    deadline = time.monotonic() + 60
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []
    assert sorted(os.listdir("/sys/class/net")) == devices


def processes_of(folder: Path) -> list[str]:
    """Processes whose command line or environment names a folder."""
    described = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), *process.environ().values()]
            if process.pid != os.getpid() and any(str(folder) in text for text in told):
                described.append(f"{process.pid}: {process.cmdline()}")
    return described
