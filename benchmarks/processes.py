"""Jobs in fresh processes: alone, or one process for each rank that `deepspeed` launched.

Under the launcher each launched process is a controller of its rank. For one job after the other
all of them start a worker of their own with a new port to meet at, and agree on how it ended.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from cpo_ds.errors import EXIT_USER_ERROR, UserError

OUT_OF_MEMORY = "out of memory"
_SIGNS_OF_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory|MemoryError"
    r"|bad_alloc|failed to map segment|can't start new thread|ENOMEM",
    re.IGNORECASE,
)
_A_DAY = timedelta(days=1)
_POLL_SECONDS = 0.1
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Result = dict[str, Any]


class Team:
    """The controllers of all ranks; alone, the only one."""

    def __init__(self) -> None:
        self.rank, self.world_size, self.local_rank = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
        self._store: TCPStore | None = None
        self._shared = 0
        if self.world_size > 1:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self._store = TCPStore(address, port, self.world_size, self.rank == 0, _A_DAY)

    def share(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank; all call it equally often."""
        if self._store is None:
            return [value]
        self._shared += 1
        self._store.set(f"{self._shared}/{self.rank}", json.dumps(value))
        names = [f"{self._shared}/{rank}" for rank in range(self.world_size)]
        return [json.loads(self._store.get(name)) for name in names]

    def prepare(self, function: Callable[[], str]) -> str:
        """What the first rank of this host makes for all of them: a path. Raises `UserError`."""
        host, made, error = socket.gethostname(), "", ""
        if self.local_rank == 0:
            try:
                made = function()
            except UserError as problem:
                error = str(problem)
        everyone = self.share([host, made, error])
        for _, _, error in everyone:
            if error:
                raise UserError(error)
        return next(path for name, path, _ in everyone if name == host and path)

    def part(self) -> None:
        """Ends the work together: rank 0, which the others ask, goes last."""
        if self._store is None:
            return
        if self.rank:
            self._store.set(f"gone/{self.rank}", "")
        for rank in range(1, self.world_size if self.rank == 0 else 1):
            self._store.get(f"gone/{rank}")

    def raise_alarm(self, job: int) -> None:
        """Tells the others that this rank's worker of a job failed: theirs will wait for ever."""
        if self._store is not None:
            self._store.set(f"alarm/{job}", "failed")

    def hears_alarm(self, job: int) -> bool:
        """Whether some rank's worker failed."""
        return self._store is not None and self._store.check([f"alarm/{job}"])


class Processes:
    """Runs one task after the other, each in a fresh process per rank."""

    def __init__(self, team: Team, folder: Path, threads: int, timeout: float) -> None:
        self._team, self._folder, self._timeout = team, folder, timeout
        self._started = self._runs = 0  # processes of this rank; runs of all ranks together
        outside = {name: value for name, value in os.environ.items() if name not in _PLACE}
        self._environment = outside | {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }

    def run(self, task: dict[str, Any]) -> Result:
        """What rank 0's worker measured, or {"error": why it could not}; the same on all ranks.

        Raises `UserError` where the worker did.
        """
        self._runs += 1
        port = self._team.share(_free_port())[0]
        code, output, result = self._run_here(task, self._place(port), alarms=True)
        outcomes = self._team.share([code, output, result])
        return judge(outcomes, self._timeout)

    def run_single(self, task: dict[str, Any]) -> Result:
        """The same for a task of one process, without the other ranks."""
        return judge([self._run_here(task, {}, alarms=False)], self._timeout)

    def _run_here(
        self, task: dict[str, Any], place: dict[str, str], *, alarms: bool
    ) -> tuple[int | None, str, Result]:
        """(exit code, None where the time was up; what it printed; what it measured)."""
        self._started += 1
        name = f"{self._started}-{self._team.rank}"
        files = [self._folder / f"{name}.{what}" for what in ("job", "result", "log")]
        files[0].write_text(json.dumps(task), encoding="utf-8")
        worker = Path(__file__).with_name("worker.py")
        with files[2].open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(worker), *map(str, files[:2])],
                env=self._environment | place,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = self._wait(process, alarms=alarms)
        done = code == 0 and files[1].exists()
        measured = json.loads(files[1].read_text(encoding="utf-8")) if done else {}
        return code, files[2].read_text(encoding="utf-8", errors="replace")[-20000:], measured

    def _place(self, port: int) -> dict[str, str]:
        """A rank's place; nothing for one rank alone, whose model TRL would wrap for several."""
        team = self._team
        if team.world_size == 1:
            return {}
        values = (team.rank, team.world_size, team.local_rank, os.environ["MASTER_ADDR"], port)
        return dict(zip(_PLACE, map(str, values), strict=True))

    def _wait(self, process: subprocess.Popen[bytes], *, alarms: bool) -> int | None:
        deadline = time.monotonic() + self._timeout
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    if alarms:
                        self._team.raise_alarm(self._runs)
                    return None
                if alarms and self._team.hears_alarm(self._runs):
                    return 0
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode and alarms:
            self._team.raise_alarm(self._runs)
        return process.returncode


def judge(outcomes: list[Any], timeout: float) -> Result:
    """Ranks' (exit code, output, result) -> rank 0's result, or an error that says what happened.

    Raises `UserError` with the message of a worker that raised one.
    """
    for code, output, _ in outcomes:
        if code == EXIT_USER_ERROR:
            raise UserError(output.strip().splitlines()[-1])
    for code, output, _ in outcomes:  # the others may have lost that rank, and say so
        killed = code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        if killed or (code and _SIGNS_OF_NO_MEMORY.search(output)):
            return {"error": OUT_OF_MEMORY}
    for code, output, _ in outcomes:
        if code is None:
            return {"error": f"not done after {timeout:g} s (--timeout)"}
        if code:
            last = output.strip().splitlines()[-1:] or ["it printed nothing"]
            return {"error": f"exit code {code}: {last[0]}", "output": output}
    return dict(outcomes[0][2])


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 if none: by doubling, then by halving.

    What is more than a number that does not fit is taken not to fit either.
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, bad * 2
    bad = min(bad, most + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
