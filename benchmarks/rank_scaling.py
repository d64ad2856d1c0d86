"""Weak and strong scaling: pairs a second and memory on 1, 2, ... ranks of one host.

    python benchmarks/rank_scaling.py             # ranks 1 to 4; on a GPU host as many as GPUs
    python benchmarks/rank_scaling.py --quick     # a tiny shape, 1 and 2 ranks

Strong: the same pairs a step on all numbers of ranks. Weak: as many pairs for each rank. Each run
is a set of fresh processes of this trainer's real loop. Runs on the same pairs must have the same
losses, whatever their ranks and ZeRO stage: the command fails if they do not. Writes a line
per run to OUT.jsonl, then OUT.md and a chart beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jobs.command import add_dtype, at_least_one, run_and_render, set_threads
from jobs.job import Job
from jobs.processes import WORKER, judge, run_ranks
from models.synthetic import Lengths, rows_of_numbers, save_random_model
from models.workload import write_rows
from pages.ranks import SCALINGS, different_losses
from pages.results import Results, read_lines, results_file

from cpo_ds.errors import UserError
from cpo_ds.model.shapes import SHAPES, shape_config

BENCHMARK = "ranks"
PAIR = Lengths(64, 48, 48, 0)
_FAILED = 1


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code: 1 if losses differ that must be equal."""
    written: list[Path] = []

    def run(folder: Path) -> Results:
        results = run_all(parse(argv), folder)
        written.append(results.file)
        return results

    code = run_and_render("rank_scaling", run)
    for text in different_losses(read_lines(written[0])) if code == 0 else ():
        print(f"rank_scaling: {text}", file=sys.stderr)
        code = _FAILED
    return code


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Runs everything; numbers of ranks and configurations take turns."""
    save_random_model(arguments.shape, folder / "model", arguments.dtype, arguments.seed)
    shared = {"benchmark": BENCHMARK, "model": arguments.shape, "weights": "random"}
    cores = len(os.sched_getaffinity(0))
    results = Results(arguments.out, shared | {"cores": cores})
    for repeat in range(arguments.repeats):
        done: dict[Any, dict[str, Any]] = {}  # the two scalings meet in one run
        for scaling, ranks, name in product(SCALINGS, arguments.ranks, arguments.deepspeed):
            weak = arguments.pairs_per_rank * ranks
            pairs = weak if scaling == "weak" else arguments.pairs
            job = make_job(arguments, folder, name, pairs, repeat)
            if (run := (pairs, ranks, name)) not in done:
                done[run] = run_on_ranks(job, ranks, folder, arguments.timeout)
            line = job.settings() | {"scaling": scaling, "ranks": ranks} | done[run]
            print(summary(results.add(line)), flush=True)
    return results


def make_job(
    arguments: argparse.Namespace, folder: Path, deepspeed: str, pairs: int, repeat: int
) -> Job:
    """Makes a run with this many pairs a step; runs with as many train on the same pairs."""
    steps = arguments.warmup_steps + arguments.steps
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    rows = rows_of_numbers([PAIR] * (steps * pairs), vocabulary, arguments.seed)
    return Job(
        repeat=repeat,
        model=str(folder / "model"),
        rows=write_rows(rows, folder / "rows.json"),
        dtype=arguments.dtype,
        threads=arguments.threads,
        pairs_per_step=pairs,
        warmup_steps=arguments.warmup_steps,
        timed_steps=arguments.steps,
        tokens_per_rank=arguments.pairs_per_rank * PAIR.unique,
        max_tokens=PAIR.prompt + PAIR.chosen,
        deepspeed=deepspeed,
        seed=arguments.seed,
    )


def run_on_ranks(job: Job, ranks: int, folder: Path, timeout: float) -> dict[str, Any]:
    """Runs a job in a fresh process for each rank; returns rank 0's measurements, or an error.

    On a CPU `waiting` is added for each rank: the share of the timed steps in which the thread that
    trains had no processor. It waits for a collective then, or for a core if ranks share cores.
    Raises `UserError` if a rank did.
    """
    # One worker for each rank; a result of an earlier run must not stay.
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    results = [folder / f"{rank}.result" for rank in range(ranks)]
    for result in results:
        result.unlink(missing_ok=True)
    commands = [[*WORKER, str(folder / "job.json"), str(result)] for result in results]
    outcomes = []
    for (code, printed), result in zip(run_ranks(commands, folder, timeout), results, strict=True):
        measured = json.loads(result.read_text(encoding="utf-8")) if code == 0 else {}
        outcomes.append((code, printed, measured))
    # Judge them: the message of a rank that failed counts first.
    failed_first = sorted(outcomes, key=lambda outcome: not outcome[0])
    judged = judge(failed_first, timeout)
    print(judged.pop("output", ""), end="", flush=True)
    if "error" not in judged and not torch.cuda.is_available():
        shares = [1 - one["thread_seconds"] / one["seconds"] for _, _, one in outcomes]
        judged["waiting"] = [round(share, 4) for share in shares]
    if "error" not in judged:
        pairs = job.timed_steps * job.pairs_per_step
        judged["pairs_per_second"] = round(pairs / judged["seconds"], 4)
    return judged


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal."""
    run = f"{line['scaling']}, {line['deepspeed']}, {line['ranks']} rank(s)"
    if "error" in line:
        return f"{run}: {line['error']}"
    rate, memory = line["pairs_per_second"], line["peak_memory_gib"]
    return f"{run}: {rate:.2f} pairs/s, {memory:.2f} GiB"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(
        description="Weak and strong scaling over the ranks of one host.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--shape", help=f"random weights of a shape: {', '.join(SHAPES)} (llama-25m)")
    add("--ranks", nargs="+", type=int, metavar="N",
        help="numbers of ranks (1 2 3 4; with GPUs 1, 2, 4, ... up to all)")  # fmt: skip
    add("--deepspeed", nargs="+", metavar="FILE", help="DeepSpeed files "
        "(ds_configs/zero0.json ds_configs/zero3.json)")  # fmt: skip
    add("--pairs-per-rank", type=int, default=3, help="pairs of a step for each rank, weak "
        "scaling; in both, the most of a micro-batch (3)")  # fmt: skip
    add("--pairs", type=int, help="pairs of a step, strong scaling (as many as weak scaling has on "
        "the most ranks, rounded up so that every number of ranks divides it)")  # fmt: skip
    add("--steps", type=int, default=3, help="steps on the clock (3)")
    add("--warmup-steps", type=int, default=1, help="steps before the clock starts (1)")
    add("--repeats", type=int, default=1, help="sets of processes for each point (1)")
    add("--threads", type=int, default=1, help="CPU threads of each rank (1)")
    add_dtype(parser)
    add("--seed", type=int, default=42, help="of weights and pairs (42)")
    add(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest time of a run (600)",
    )
    add("--quick", action="store_true", help="a tiny shape, 1 and 2 ranks, one step")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/ranks_SHAPE_DEVICE.jsonl)")  # fmt: skip
    arguments = parser.parse_args(argv)
    # Fill in defaults, then check the numbers.
    if arguments.quick:
        arguments.shape = arguments.shape or "tiny"
        arguments.ranks = arguments.ranks or [1, 2]
        arguments.steps = 1
    arguments.shape = arguments.shape or "llama-25m"
    shape_config(arguments.shape)
    arguments.ranks = sorted(set(arguments.ranks or default_ranks()))
    arguments.deepspeed = arguments.deepspeed or [f"ds_configs/zero{n}.json" for n in (0, 3)]
    check(arguments)
    set_threads(arguments.threads)
    arguments.out = results_file(arguments.out, BENCHMARK, arguments.shape)
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for values out of range; fills in the pairs of strong scaling."""
    names = ("pairs_per_rank", "pairs", "steps", "warmup_steps", "repeats", "threads")
    at_least_one(ranks=min(arguments.ranks), **{n: getattr(arguments, n) for n in names})
    even = math.lcm(*arguments.ranks)
    if arguments.pairs is None:
        arguments.pairs = even * -(-arguments.pairs_per_rank * max(arguments.ranks) // even)
    if arguments.pairs % even:
        raise UserError(
            f"--pairs is {arguments.pairs}, which {', '.join(map(str, arguments.ranks))} ranks do "
            f"not share evenly; take a multiple of {even}."
        )
    gpus = torch.cuda.device_count()
    if gpus and max(arguments.ranks) > gpus:
        raise UserError(f"--ranks {max(arguments.ranks)}: this host has {gpus} GPU(s).")


def default_ranks() -> list[int]:
    """The default numbers of ranks: 1 to 4; with GPUs 1, 2, 4, ... and all of them."""
    gpus = torch.cuda.device_count()
    if not gpus:
        return [1, 2, 3, 4]
    return [*(2**n for n in range(gpus.bit_length()) if 2**n < gpus), gpus]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
