"""The parts that the benchmarks' commands share: arguments, threads, a page at the end."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pages.results import Results, render_file

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from jobs.processes import module_environment


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


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Declares `--dtype`, of which `auto` becomes the precision that training would take here."""
    parser.add_argument(
        "--dtype", type=_concrete, choices=("float32", "bfloat16"), default="float32",
        metavar="{auto,float32,bfloat16}",
        help="precision, or auto, as model.dtype of a recipe (float32)",
    )  # fmt: skip


def add_timed_runs(parser: argparse.ArgumentParser, of: str, *, repeats: int = 2) -> None:
    """Declares the options of runs on the clock, `repeats` of each variant or what `of` names."""
    add = parser.add_argument
    add("--steps", type=int, default=2, help="steps on the clock (2)")
    add("--warmup-steps", type=int, default=1, help="steps before the clock starts (1)")
    add("--repeats", type=int, default=repeats, help=f"processes per {of} ({repeats})")
    add("--threads", type=int, help="CPU threads (all cores)")
    add_dtype(parser)
    add("--deepspeed", default="ds_configs/zero0.json", metavar="FILE",
        help="DeepSpeed file (ds_configs/zero0.json)")  # fmt: skip
    add("--seed", type=int, default=42, help="of weights, pairs and their order (42)")


def _concrete(dtype: str) -> str:
    if dtype != "auto":
        return dtype
    # In a process of its own, since a GPU reserves memory for each process that asks it.
    code = (
        "import torch; from cpo_ds.model.precision import device_precision; "
        "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu'); "
        "print(device_precision(device).dtype)"
    )
    command, environment = [sys.executable, "-c", code], module_environment()
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return answer.stdout.split()[-1]


def at_least_one(**values: int | None) -> None:
    """Raises `UserError` if an argument of the command line is below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; it is {value}.")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declares the recipe, the policy and its name on the page."""
    add = parser.add_argument
    add("--config", default="recipes/demo.yaml", help="the recipe (recipes/demo.yaml)")
    add("--model", default="runs/models/smollm2-135m-instruct", metavar="FOLDER",
        help="the policy (runs/models/smollm2-135m-instruct)")  # fmt: skip
    add("--name", help="the model's name on the page (its folder's)")


def check_model(arguments: argparse.Namespace) -> None:
    """Fills in the model's name. Raises `UserError` if there is no such folder."""
    if not Path(arguments.model).is_dir():
        raise UserError(
            f"--model: there is no folder {arguments.model}; the demo's model is made by python "
            f"scripts/make_demo_model.py {arguments.model}."
        )
    arguments.name = arguments.name or Path(arguments.model).name
