"""Which programs count as launchers, and what a rank does when one is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpo_ds.ranks import launchers
from cpo_ds.ranks.launchers import end_with, launchers_above, program
from cpo_ds.ranks.stopping import StopRequest


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/bin/python3.11 -u -m torch.distributed.run --x", "torch.distributed.run"),
        ("python -m deepspeed.launcher.launch x", "deepspeed.launcher.launch"),
        ("python venv/bin/deepspeed cpo_ds/train.py", "deepspeed"),
        ("venv/bin/python -u venv/bin/torchrun --nproc-per-node 2 x.py", "torchrun"),
        ("mpirun -np 2 python cpo_ds/train.py", "mpirun"),
        ("bash scripts/supervise.sh deepspeed cpo_ds/train.py", "bash"),
        ("screen -dm deepspeed cpo_ds/train.py", "screen"),
        ("python train.py --name torchrun", "train.py"),
        ("python", "python"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_program_of_a_command_line(command: str, name: str) -> None:
    assert program(command.split(" ")) == name


SHOWS = (
    "from cpo_ds.ranks.launchers import *\nprint([l.name for l in launchers_above()], flush=True)"
)


def started_by(folder: Path, name: str) -> str:
    """What a process prints that a program of this name started."""
    script = folder / name
    script.write_text("import subprocess, sys\nsubprocess.run(sys.argv[1:])\n")
    command = [sys.executable, str(script), sys.executable, "-c", SHOWS]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_launchers_are_found_behind_shells(tmp_path: Path) -> None:
    assert started_by(tmp_path, "torchrun") == "['torchrun']"
    assert started_by(tmp_path, "supervise") == "[]" and launchers_above() == []


ENDS = """
import os, signal, sys, time
from cpo_ds.ranks import launchers
from cpo_ds.ranks.stopping import StopRequest
launchers._LAST_SECONDS = float(sys.argv[1])
above, stop = launchers.launchers_above(), StopRequest()
launchers.end_with(above, stop)
print(os.getpid(), flush=True)
while stop.reason is None: time.sleep(0.01)
print(stop.reason, flush=True)
time.sleep(float(sys.argv[2]))
print("saved", flush=True)
"""


@pytest.mark.parametrize(("last", "save", "saves"), [(30, 0.1, True), (0.1, 30, False)])
def test_a_rank_whose_launcher_is_gone_saves_or_ends(
    tmp_path: Path, last: float, save: float, saves: bool
) -> None:
    script = tmp_path / "torchrun"
    script.write_text("import subprocess, sys\nsubprocess.run(sys.argv[1:])\n")
    command = [sys.executable, str(script), sys.executable, "-c", ENDS, str(last), str(save)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    launcher = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    assert launcher.stdout is not None
    assert int(launcher.stdout.readline()) > 1
    launcher.kill()
    out, err = launcher.communicate(timeout=30)  # until the rank has closed them, too
    name = f"torchrun (process {launcher.pid})"
    assert out.startswith(f"the end of {name}\n") and out.endswith("saved\n") == saves
    assert f"cpo_ds: the launcher {name} is gone; saving and ending." in err
    assert ("could not end its step and save within 0.1 s" in err) != saves


def test_without_a_launcher_nothing_is_watched() -> None:
    stop = StopRequest()
    end_with([], stop)
    assert stop.reason is None
    assert launchers._LOOK_SECONDS <= 1 and launchers._LAST_SECONDS < 60


@pytest.mark.parametrize("is_shown", [True, False])
def test_ranks_without_a_console_let_the_one_with_it_tell_first(
    is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all could end, asked by another rank, before rank 0 has looked."""
    told: list[object] = []

    class Asked:
        def ask(self, reason: str) -> None:
            told.append(reason)

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(launchers.time, "sleep", told.append)
    monkeypatch.setattr(launchers.os, "_exit", end)
    gone = launchers.Launcher("torchrun", 2**22 + 1, 1)
    with pytest.raises(SystemExit):
        launchers._wait_for_end([gone], Asked(), is_shown)
    reason = "the end of torchrun (process 4194305)"
    before = [] if is_shown else [2 * launchers._LOOK_SECONDS]
    assert told == [*before, reason, launchers._LAST_SECONDS]
    assert 3 * launchers._LOOK_SECONDS + launchers._LAST_SECONDS < 60
