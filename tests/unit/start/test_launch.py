"""Signals and exit codes of a launch, with small processes in the place of launcher and ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from repository import ROOT

from cpo_ds.ranks.stopping import is_same_request
from cpo_ds.start.devices import gpus_here, ranks_and_gpus

# Starts ranks as DeepSpeed's launcher does: kills the others once one has failed. `wait` ignores
# nothing, so that a signal to it alone ends it.
LAUNCHER = """
import os, signal, subprocess, sys, time
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[1]],
                          env=os.environ | {"RANK": str(n), "OMP_NUM_THREADS": "1"})
         for n in range(2)]
while not (failed := [rank.returncode for rank in ranks if rank.poll()]):
    if all(rank.returncode == 0 for rank in ranks):
        sys.exit(0)
    time.sleep(0.05)
for rank in ranks:
    rank.kill()
    rank.wait()
sys.exit(failed[0])
"""
# A rank says that it is ready, and saves for a second once it was asked to stop.
RANK = """
import os, sys, time
from cpo_ds.ranks.stopping import StopRequest
stop = StopRequest()
stop.listen()
print("ready", os.environ["RANK"], flush=True)
while stop.reason is None: time.sleep(0.01)
time.sleep(float(os.environ["SAVE_SECONDS"]))
if os.environ["RANK"] == "0": print("saved, asked to by", stop.reason, flush=True)
time.sleep(0.2)
sys.exit(4)
"""
LAUNCH = """
import sys
from cpo_ds.start.launch import Launch
sys.exit(Launch([sys.executable, "-c", *sys.argv[1:]], {}).follow())
"""


class Started:
    """A launch in a process of its own, as `cpo-ds train`."""

    def __init__(self, rank: str, *, launcher: str = LAUNCHER, save_seconds: float = 0.5) -> None:
        environment = {"PYTHONPATH": str(ROOT), "SAVE_SECONDS": str(save_seconds)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, launcher, rank],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.family: list[psutil.Process] = []

    def wait_for_ranks(self) -> None:
        assert self.process.stdout is not None
        assert {self.process.stdout.readline() for _ in range(2)} == {"ready 0\n", "ready 1\n"}
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def launcher(self) -> psutil.Process:
        (launcher,) = psutil.Process(self.process.pid).children()
        return launcher

    def end(self) -> tuple[int, str]:
        """Exit code and the rest of the output. Nothing that was started may be left."""
        output, _ = self.process.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while left := [process for process in self.family if _runs(process)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        assert "Traceback" not in output
        return self.process.returncode, output


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("sent", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGUSR1")])
def test_one_request_saves_however_long_that_takes(sent: signal.Signals, name: str) -> None:
    run = Started(RANK)
    run.wait_for_ranks()
    run.process.send_signal(sent)
    code, output = run.end()
    assert code == 4
    assert output.count(f"cpo_ds: {name}: the step is finished and a checkpoint saved") == 1
    assert f"A second {name} ends it now" in output and f"saved, asked to by {name}" in output


def test_a_second_ctrl_c_ends_all_now() -> None:
    run = Started(RANK, save_seconds=60)
    run.wait_for_ranks()
    for _ in range(2):
        run.process.send_signal(signal.SIGINT)
        time.sleep(1.2)
    code, output = run.end()
    assert code == 130 and "saved" not in output.replace("checkpoint saved", "")
    assert "cpo_ds: a second Ctrl-C arrived; ending now." in output


def test_ctrl_z_suspends_the_ranks_too() -> None:
    run = Started(RANK)
    run.wait_for_ranks()
    run.process.send_signal(signal.SIGTSTP)
    stopped = psutil.STATUS_STOPPED
    while not all(process.status() == stopped for process in run.family):
        time.sleep(0.01)
    run.process.send_signal(signal.SIGCONT)
    while any(process.status() == stopped for process in run.family):
        time.sleep(0.01)
    run.process.send_signal(signal.SIGINT)
    assert run.end()[0] == 4


def test_before_there_are_ranks_nothing_is_lost() -> None:
    run = Started(RANK, launcher="import time\nprint('importing', flush=True)\ntime.sleep(60)")
    assert run.process.stdout and run.process.stdout.readline() == "importing\n"
    run.process.send_signal(signal.SIGINT)
    assert run.end() == (
        4, "\ncpo_ds: stopped: asked to before training began; nothing is lost.\n"
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 1, 3])
def test_exit_codes_of_ranks_are_passed_on(code: int) -> None:
    assert Started(f"import sys; sys.exit({code})").end() == (code, "")


def test_a_rank_that_a_signal_ends_is_lost() -> None:
    code, output = Started("import os; os.kill(os.getpid(), 9)").end()
    assert code == 5 and "cpo_ds: stopped: a rank was ended by signal 9, Killed" in output


def test_ranks_of_a_killed_launcher_save_before_this_process_ends() -> None:
    run = Started(RANK)
    run.wait_for_ranks()
    ranks = [process for process in run.family if "RANK" in process.environ()]
    run.launcher().kill()
    for rank in ranks:  # as their watch over the launcher asks them
        rank.send_signal(signal.SIGUSR1)
    code, output = run.end()
    assert code == 5 and "saved, asked to by SIGUSR1" in output
    assert "the launcher ended before its ranks" in output
    assert "the launcher was ended by signal 9" in output


def test_requests_that_come_together_are_one() -> None:
    assert is_same_request(signal.SIGTERM, 2) and not is_same_request(signal.SIGTERM, 4)
    assert is_same_request(signal.SIGINT, 0.5) and not is_same_request(signal.SIGINT, 2)


def test_gpus_are_counted_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus_here({}, tmp_path) == []
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus_here({}, tmp_path) == ["0", "1", "2"]
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "2, 0"}, tmp_path) == ["2", "0"]
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    monkeypatch.setattr("cpo_ds.start.devices.gpus_here", lambda: ["4", "6"])
    assert ranks_and_gpus(None) == (2, ["4", "6"]) and ranks_and_gpus(1) == (1, ["4"])
    with pytest.raises(Exception, match=r"3 GPUs are asked for, but this machine has 2"):
        ranks_and_gpus(3)
