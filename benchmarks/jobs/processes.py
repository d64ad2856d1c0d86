"""The one runner of processes: fresh ones for each job, one for each rank.

`Processes` serves `memory_vs_dpo.py`, also under the `deepspeed` launcher: each launched process
controls its rank, starts a worker for one job after the other, and all agree on how it ended.
`run_ranks` starts the ranks of this host by itself. `run_fresh` calls one function.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.run.allocators import let_gpu_memory_grow
from jobs.team import Team

OUT_OF_MEMORY = "out of memory"
_SIGNS_OF_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory|MemoryError"
    r"|bad_alloc|failed to map segment|can't start new thread|ENOMEM",
    re.IGNORECASE,
)
_POLL_SECONDS = 0.1
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

BENCHMARKS = Path(__file__).resolve().parent.parent
WORKER = (sys.executable, "-m", "jobs.worker")  # and JOB.json RESULT.json

Result = dict[str, Any]


def module_environment() -> dict[str, str]:
    """The environment of a process that runs a module of benchmarks/ with `python -m`."""
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Processes:
    """Runs one task after the other, each in a fresh process per rank."""

    def __init__(self, team: Team, folder: Path, threads: int, timeout: float) -> None:
        self._team, self._folder, self._timeout = team, folder, timeout
        self._started = self._runs = 0  # processes of this rank; runs of all ranks together
        let_gpu_memory_grow()  # as in a run, and for all trainers alike
        outside = {k: v for k, v in module_environment().items() if k not in _RANK_VARIABLES}
        self._environment = outside | {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }

    def run(self, task: dict[str, Any]) -> Result:
        """Runs a task on all ranks; returns rank 0's measurements, or {"error": the reason}.

        All ranks return the same. Raises `UserError` if a worker did.
        """
        self._runs += 1
        port = self._team.share(free_port())[0]
        code, output, result = self._run_here(task, self._place(port), alarms=True)
        outcomes = self._team.share([code, output, result])
        return judge(outcomes, self._timeout)

    def run_single(self, task: dict[str, Any]) -> Result:
        """Runs a task in one process, without the other ranks."""
        return judge([self._run_here(task, {}, alarms=False)], self._timeout)

    def _run_here(
        self, task: dict[str, Any], place_variables: dict[str, str], *, alarms: bool
    ) -> tuple[int | None, str, Result]:
        """Returns a worker's exit code (None if the time was up), output and measurements."""
        self._started += 1
        name = f"{self._started}-{self._team.rank}"
        files = [self._folder / f"{name}.{ending}" for ending in ("job", "result", "log")]
        files[0].write_text(json.dumps(task), encoding="utf-8")
        with files[2].open("wb") as log:
            process = subprocess.Popen(
                [*WORKER, *map(str, files[:2])],
                env=self._environment | place_variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = self._wait(process, alarms=alarms)
        done = code == 0 and files[1].exists()
        measured = json.loads(files[1].read_text(encoding="utf-8")) if done else {}
        return code, files[2].read_text(encoding="utf-8", errors="replace")[-20000:], measured

    def _place(self, port: int) -> dict[str, str]:
        """The variables of a rank's place; empty for one rank, or TRL would wrap the model."""
        team = self._team
        if team.world_size == 1:
            return {}
        values = (team.rank, team.world_size, team.local_rank, os.environ["MASTER_ADDR"], port)
        return dict(zip(_RANK_VARIABLES, map(str, values), strict=True))

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
    """Turns ranks' (exit code, output, result) into rank 0's result, or an error that says why.

    Raises `UserError` with the message of a worker that raised one.
    """
    for code, output, _ in outcomes:
        if code == EXIT_USER_ERROR:
            raise UserError(output.strip().splitlines()[-1])
    # Memory comes before other errors: ranks that lost the killed one fail in their own way.
    for code, output, _ in outcomes:
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


def largest_that_fits(
    fits: Callable[[int], bool], most: int, *, first: int = 1, within: float = 0.0
) -> int:
    """Finds the largest number up to `most` that fits, 0 if none: by doubling, then by halving.

    Assumes that if a number does not fit, no larger one fits. It begins at `first`, and ends when
    the largest that may fit is at most this share `within` above the result.
    """
    good, bad = 0, min(first, most)
    while bad <= most and fits(bad):
        good, bad = bad, bad * 2
    bad = min(bad, most + 1)
    while bad - good > max(1, within * good):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def free_port() -> int:
    """A port for the ranks to meet at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def run_fresh(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls `function(*arguments)` in a new process; returns its result, or {"error": the reason}.

    The function must lie at the top of its module. Its output is shown only if it fails. Raises
    `UserError` if the function did.
    """
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        log, written = Path(folder) / "log", Path(folder) / "result"
        task = (str(log), str(written), function, arguments)
        process = context.Process(target=_work, args=task)
        process.start()
        process.join()
        printed = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        done = process.exitcode == 0
        measured = json.loads(written.read_text(encoding="utf-8")) if done else {}
    result = judge([(process.exitcode, printed, measured)], timeout=0.0)
    if "output" in result:
        print(result.pop("output"), flush=True)
    return result


def _work(
    log: str, result: str, function: Callable[..., Result], arguments: tuple[Any, ...]
) -> None:
    """Runs in the new process: all output, libraries' included, goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        Path(result).write_text(json.dumps(function(*arguments)), encoding="utf-8")
    except UserError as error:
        print(error, flush=True)
        sys.exit(EXIT_USER_ERROR)


def run_ranks(
    commands: Sequence[Sequence[str]], folder: Path, timeout: float, **environment: str
) -> list[tuple[int | None, str]]:
    """Runs one command for each rank of this host, all at once, until they have ended.

    Returns each rank's exit code, None if the time was up, and its output. If one rank fails,
    the others get a moment to end and are killed.
    """
    # Start all ranks; each one's output goes to a file of its own.
    port = str(free_port())
    running: list[subprocess.Popen[bytes]] = []
    logs = [folder / f"{rank}.log" for rank in range(len(commands))]
    try:
        for rank, (command, log) in enumerate(zip(commands, logs, strict=True)):
            values = (rank, len(commands), rank, "127.0.0.1", port)
            own = dict(zip(_RANK_VARIABLES, map(str, values), strict=True))
            own["LOCAL_WORLD_SIZE"] = str(len(commands))
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    env=module_environment() | own | environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            running.append(process)
        # Wait, then end those that are left.
        _wait_for_all(running, timeout)
        codes = [process.poll() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    printed = [log.read_text(encoding="utf-8", errors="replace") for log in logs]
    return list(zip(codes, printed, strict=True))


def _wait_for_all(running: Sequence[subprocess.Popen[bytes]], timeout: float) -> None:
    """Waits until all have ended, one has failed and the others had a moment, or the time is up."""
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in running):
        if any(process.poll() for process in running):
            deadline = min(deadline, time.monotonic() + 2)
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
