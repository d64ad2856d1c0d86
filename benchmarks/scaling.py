"""The cost of a pair against its length, the vocabulary and the micro-batch, one at a time.

    python benchmarks/scaling.py                 # llama-25m, CPO and DPO with a reference model
    python benchmarks/scaling.py --quick         # a tiny shape, two values of each, CPO alone

All pairs of a run are of one length and share their prompt. From a base point one factor is varied,
the others stay. Each run is a fresh process of this trainer's real loop. Writes a line per run to
OUT.jsonl, then OUT.md and a chart beside it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.command import add_timed_runs, at_least_one, run_and_render, set_threads
from jobs.job import OURS, TRAININGS, Job, combinations
from jobs.processes import run_fresh
from jobs.worker import run_job
from models.synthetic import SPECIAL_TOKENS, Lengths, rows_of_numbers, save_random_model
from models.workload import write_rows
from pages.results import Results, results_file

from cpo_ds.errors import UserError
from cpo_ds.model.shapes import SHAPES, shape_config

BENCHMARK = "scaling"
FACTORS = ("prompt_tokens", "completion_tokens", "vocabulary", "micro_batch_pairs")


@dataclass(frozen=True)
class Point:
    """One combination of the factors."""

    prompt_tokens: int
    completion_tokens: int  # of each, the end-of-sequence token included
    vocabulary: int
    micro_batch_pairs: int

    @property
    def tokens_per_pair(self) -> int:
        """Tokens that the body computes for a pair; the prompt counts once."""
        return self.prompt_tokens + 2 * self.completion_tokens


def points(base: Point, values: dict[str, list[int]]) -> dict[Point, list[str]]:
    """Maps each point to measure to the factors that it varies; the base belongs to all of them."""
    factors_of: dict[Point, list[str]] = {base: list(values)}
    for factor, steps in values.items():
        for step in steps:
            point = replace(base, **{factor: step})
            if point != base:
                factors_of[point] = [factor]
    return factors_of


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_and_render("scaling", lambda folder: run_all(parse(argv), folder))


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Runs all points with all methods, `--repeats` times."""
    base = Point(*(getattr(arguments, factor)[0] for factor in FACTORS))
    planned = points(base, {factor: getattr(arguments, factor) for factor in FACTORS})
    models = {v: make_model(arguments, v, folder) for v in {p.vocabulary for p in planned}}
    shared = {"benchmark": BENCHMARK, "model": arguments.shape, "weights": "random"}
    results = Results(arguments.out, shared)
    for repeat in range(arguments.repeats):
        for point, factors in planned.items():
            for method in arguments.methods:
                job = make_job(arguments, point, models[point.vocabulary], folder / "rows.json")
                method_job = replace(job, method=method, repeat=repeat)
                measured = run_fresh(run_job, method_job)
                if "error" not in measured:
                    measured |= rates(point, method_job, measured["seconds"])
                at_point = {"varies": factors} | asdict(point)
                line = results.add(method_job.settings() | at_point | measured)
                values = tuple(asdict(point).values())
                print(f"{method}, {values}: {summary(line)}", flush=True)
    return results


def rates(point: Point, job: Job, seconds: float) -> dict[str, float]:
    """Pairs and unique tokens a second."""
    pairs = job.timed_steps * job.pairs_per_step / seconds
    return {
        "pairs_per_second": round(pairs, 4),
        "tokens_per_second": round(pairs * point.tokens_per_pair, 2),
        "tokens_per_pair": point.tokens_per_pair,
    }


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal."""
    if "error" in line:
        return str(line["error"])
    return f"{line['pairs_per_second']:.2f} pairs/s, {line['peak_memory_gib']:.2f} GiB"


def make_model(arguments: argparse.Namespace, vocabulary: int, folder: Path) -> str:
    """Writes the shape with another vocabulary; returns its folder."""
    made = folder / f"vocabulary-{vocabulary}"
    save_random_model(arguments.shape, made, arguments.dtype, arguments.seed, vocabulary)
    return str(made)


def make_job(arguments: argparse.Namespace, point: Point, model: str, rows: Path) -> Job:
    """Makes a run at a point and writes its pairs to `rows`."""
    lengths = Lengths(point.prompt_tokens, point.completion_tokens, point.completion_tokens, 0)
    steps = arguments.warmup_steps + arguments.steps
    count = steps * arguments.pairs_per_step
    return Job(
        training=arguments.training,
        model=model,
        rows=write_rows(rows_of_numbers([lengths] * count, point.vocabulary, arguments.seed), rows),
        dtype=arguments.dtype,
        threads=arguments.threads,
        pairs_per_step=arguments.pairs_per_step,
        warmup_steps=arguments.warmup_steps,
        timed_steps=arguments.steps,
        tokens_per_rank=point.micro_batch_pairs * point.tokens_per_pair,
        max_tokens=point.prompt_tokens + point.completion_tokens,
        deepspeed=arguments.deepspeed,
        seed=arguments.seed,
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(
        description="The cost of a pair. The first value of each factor is the base point.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--shape", help=f"random weights of a shape: {', '.join(SHAPES)} "
        "(llama-25m)")  # fmt: skip
    add("--methods", nargs="+", choices=OURS, default=["cpo", "dpo-reference"], metavar="METHOD",
        help=f"which to run: {', '.join(OURS)} (cpo dpo-reference)")  # fmt: skip
    add(
        "--training",
        choices=TRAININGS,
        default="full",
        help="train all parameters or a LoRA adapter (full)",
    )
    lists = {
        "prompt_tokens": (64, 16, 128, 256),
        "completion_tokens": (48, 16, 96, 192),
        "vocabulary": (8192, 2048, 32000, 128256),
        "micro_batch_pairs": (8, 1, 2, 4),
    }
    for factor, values in lists.items():
        add(f"--{factor.replace('_', '-')}", type=int, nargs="+", default=list(values),
            metavar="N", help=f"base and others ({' '.join(map(str, values))})")  # fmt: skip
    add("--pairs-per-step", type=int, default=8, help="pairs per optimizer step (8)")
    add_timed_runs(parser, "point and method", repeats=1)
    add("--quick", action="store_true", help="a tiny shape, the first two values of each factor, "
        "the first method")  # fmt: skip
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/scaling_SHAPE_DEVICE.jsonl)")  # fmt: skip
    arguments = parser.parse_args(argv)
    # Shrink it for a quick try, check the numbers, fill in defaults.
    if arguments.quick:
        arguments.shape = arguments.shape or "tiny"
        arguments.methods = arguments.methods[:1]
        for factor in FACTORS:
            setattr(arguments, factor, getattr(arguments, factor)[:2])
    arguments.shape = arguments.shape or "llama-25m"
    check(arguments)
    arguments.threads = set_threads(arguments.threads)
    arguments.out = results_file(arguments.out, BENCHMARK, arguments.shape)
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for an unknown shape and for values that no run can have."""
    shape_config(arguments.shape)
    _, left_out = combinations(arguments.methods, [arguments.training])
    if left_out:
        raise UserError(f"{left_out[0]}.")
    names = ("pairs_per_step", "steps", "warmup_steps", "repeats", "threads")
    at_least_one(**{name: getattr(arguments, name) for name in names})
    least = {"prompt_tokens": 1, "completion_tokens": 2, "micro_batch_pairs": 1,
             "vocabulary": len(SPECIAL_TOKENS) + 2}  # fmt: skip
    for factor, bound in least.items():
        if min(getattr(arguments, factor)) < bound:
            raise UserError(f"--{factor.replace('_', '-')} must be at least {bound} each.")
    if max(arguments.micro_batch_pairs) > arguments.pairs_per_step:
        raise UserError("--micro-batch-pairs must not be more than --pairs-per-step.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
