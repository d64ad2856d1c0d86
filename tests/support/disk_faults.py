"""Programs whose calls on files fail, by `disk_faults.c`."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch import Finished, free_port
from repository import ROOT

SOURCE = Path(__file__).with_name("disk_faults.c")


def reason_against() -> str | None:
    """Why calls cannot be made to fail on this machine; None if they can."""
    if sys.platform != "linux":
        return "calls on files are made to fail on Linux only"
    if _compiler() is None:
        return "there is no C compiler (cc or $CC) to build the library by which calls fail"
    return None


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def build(folder: Path) -> Path:
    """Compiles the library that LD_PRELOAD loads."""
    library, compiler = folder / "disk_faults.so", _compiler()
    assert compiler is not None
    options = ["-std=gnu11", "-O1", "-D_GNU_SOURCE", "-shared", "-fPIC"]
    command = [compiler, *options, str(SOURCE), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@dataclasses.dataclass(frozen=True)
class Fault:
    """The calls of `kinds` below a folder that fail: the one with number `at`, or all from there.

    `effect` is EIO, ENOSPC, kill, or a number of milliseconds that the call takes longer.
    """

    kinds: str
    at: int
    effect: str = "EIO"
    stays: bool = False

    def __str__(self) -> str:
        later = " and later" if self.stays else ""
        return f"{self.effect} at {self.kinds} {self.at}{later}"

    def variables(self, folder: Path, counter: Path) -> dict[str, str]:
        stays = {"DISK_FAULTS_STAYS": "1"} if self.stays else {}
        return stays | {
            "DISK_FAULTS_BELOW": str(folder),
            "DISK_FAULTS_CALLS": self.kinds,
            "DISK_FAULTS_AT": str(self.at),
            "DISK_FAULTS_EFFECT": self.effect,
            "DISK_FAULTS_COUNTER": str(counter),
        }


class FaultyRuns:
    """Runs commands with and without faults; all ranks of a run count their calls together."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder
        self.calls = 0  # of the kinds of the last fault, below its folder

    def run(
        self,
        *arguments: object,
        below: Path | None = None,
        fault: Fault | None = None,
        ranks: int = 1,
        timeout: float = 120,
        **environment: str,
    ) -> list[Finished]:
        """Runs `train ...` or `cpo-ds ...`; returns each rank's end. A hang has the code -9."""
        counter = self._folder / "counter"
        counter.write_bytes(bytes(8))
        if fault is not None:
            assert below is not None
            environment |= fault.variables(below, counter)
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        each: list[dict[str, str]] = [environment]
        if arguments[0] == "train" or ranks > 1:
            master["WORLD_SIZE"] = str(ranks)
            each = [
                environment | master | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                for rank in range(ranks)
            ]
        request: dict[str, Any] = {
            "arguments": [str(argument) for argument in arguments],
            "environments": each,
            "output": str(self._folder / "output"),
            "timeout": timeout,
            "patience": 1 if ranks > 1 else timeout,
        }
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answers = json.loads(self._server.stdout.readline())
        self.calls = int.from_bytes(counter.read_bytes(), sys.byteorder)
        return [Finished(-9 if code is None else code, output) for code, output in answers]


@contextmanager
def faulty_runs() -> Iterator[FaultyRuns]:
    """Starts the process that runs commands, with the library that makes calls fail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = os.pathsep.join(filter(None, sys.path))
        environment = os.environ | {"LD_PRELOAD": str(build(folder)), "PYTHONPATH": paths}
        server = subprocess.Popen(
            [sys.executable, "-m", "workers.fault_server"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield FaultyRuns(server, folder)
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()
