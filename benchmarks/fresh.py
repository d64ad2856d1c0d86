"""Runs of one rank, each in a fresh process, and the file that takes a line for each of them."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from environment import describe_environment
from processes import judge
from render import RESULTS, render_file

from cpo_ds.errors import EXIT_USER_ERROR, UserError

Line = dict[str, Any]


def run_fresh(function: Callable[..., Line], *arguments: Any) -> Line:
    """What `function(*arguments)` returns in a new process, or {"error": why it could not}.

    The function lies at the top of its module. What it prints is shown only if it fails. Raises
    `UserError` where it did.
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


def _work(log: str, result: str, function: Callable[..., Line], arguments: tuple) -> None:
    """The new process: what it and its libraries print goes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        Path(result).write_text(json.dumps(function(*arguments)), encoding="utf-8")
    except UserError as error:
        print(error, flush=True)
        sys.exit(EXIT_USER_ERROR)


def run_and_render(name: str, run: Callable[[Path], Results]) -> int:
    """Runs a benchmark in a temporary folder, writes and prints its page; returns the exit code."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            results = run(Path(folder))
        render_file(results.file)
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(results.file.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


class Results:
    """A file of results, begun anew: a line per run, written as soon as there is one."""

    def __init__(self, file: Path, about: Line) -> None:
        """`about` is what all lines say, after `benchmark` and before the environment."""
        self.file = file
        self.lines: list[Line] = []
        self._about, self._environment = about, describe_environment()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("", encoding="utf-8")

    def add(self, measured: Line) -> Line:
        """Writes a line and returns it."""
        line = self._about | measured | self._environment
        self.lines.append(line)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def results_file(given: Path | None, benchmark: str, model: str) -> Path:
    """The file that is given, or `benchmarks/results/BENCHMARK_MODEL_DEVICE.jsonl`."""
    from memory_vs_dpo import plain_name  # slow to import, and processes of runs do without

    on_gpu = torch.cuda.is_available()
    device = plain_name(torch.cuda.get_device_name()) if on_gpu else "cpu"
    default = RESULTS / f"{benchmark}_{plain_name(model)}_{device}.jsonl"
    return (given or default).with_suffix(".jsonl")


def set_threads(threads: int | None) -> int:
    """Sets the threads of processes that are started from now on; all cores where None."""
    threads = threads or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads


def at_least_one(**values: int | None) -> None:
    """Raises `UserError` for an argument of the command line below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; it is {value}.")
