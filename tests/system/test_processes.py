"""Processes: their progress, their state, and files that a kill left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from counted_work import counted

from cpo_ds.checkpoint import reshard as universal
from cpo_ds.ranks.processes import is_running, own_process
from cpo_ds.storage.files import replacing

WRITES = """
import sys, time
for _ in range(8):
    time.sleep(0.1)
    open(sys.argv[1], "wb").write(bytes(2**20))
"""


def test_a_command_counts_as_long_as_it_moves_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(universal, "_LOOK_SECONDS", 0.2)

    def run(*command: str) -> tuple[int, str]:
        return universal._run_counting(list(command), {"PATH": "/usr/bin:/bin"})

    assert counted(lambda: run(sys.executable, "-c", WRITES, str(tmp_path / "file"))) > 1
    assert counted(lambda: run("sleep", "1")) == 0
    assert run("sh", "-c", "echo said; exit 3") == (3, "said\n")


def test_a_process_is_known_by_its_start_and_its_state(tmp_path: Path) -> None:
    me = own_process(0)
    assert is_running(me) and not is_running(replace(me, started=me.started + 1))
    # The name of a program may hold what separates the fields of /proc/PID/stat.
    program = shutil.copy("/bin/sleep", tmp_path / ") Z 1 (2")
    child = subprocess.Popen([program, "60"])
    try:
        time.sleep(0.1)
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        started = int(stat.rpartition(")")[2].split()[19])
        other = replace(me, pid=child.pid, started=started)
        assert is_running(other)
        child.kill()
        time.sleep(0.1)
        assert not is_running(other)  # dead, but not waited for
    finally:
        child.kill()
        child.wait()
    assert not is_running(other)


def test_what_a_kill_left_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    script = """if True:
        import os, pathlib, sys
        from cpo_ds.storage.files import replacing
        with replacing(pathlib.Path(sys.argv[1])) as unfinished:
            unfinished.write_text("longer than what comes later")
            os.kill(os.getpid(), 9)"""
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -9
    assert not path.exists() and len(os.listdir(tmp_path)) == 1
    with replacing(path) as unfinished:
        unfinished.write_text("whole")
    assert os.listdir(tmp_path) == ["file"] and path.read_text() == "whole"
