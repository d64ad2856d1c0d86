"""The parts that the benchmarks' commands share: arguments, threads, a page at the end."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pages.results import Results, render_file

from cpo_ds.errors import EXIT_USER_ERROR, UserError


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


def set_threads(threads: int | None) -> int:
    """Sets the threads of processes started from now on; None means all cores."""
    threads = threads or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return threads


def at_least_one(**values: int | None) -> None:
    """Raises `UserError` if an argument of the command line is below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; it is {value}.")
