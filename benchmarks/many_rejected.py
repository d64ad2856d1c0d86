"""The cost of a comparison against the number of rejected translations of one source.

    python benchmarks/many_rejected.py              # SmolLM2-135M's shape, WMT22's lengths
    python benchmarks/many_rejected.py --quick      # a tiny shape, a minute, to try it out

Rows have k rejected completions, k = 1, 2, 4, 8. This trainer takes them as lists, then unrolled
into k pairs each; TRL's CPOTrainer takes the unrolled pairs. All make the same comparisons in each
optimizer step; the unrolled pairs of a step are shuffled. Each run is a fresh process, in turns.
Writes a line per run to OUT.jsonl, then OUT.md and a chart beside it.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.command import add_timed_runs, at_least_one, run_and_render, set_threads
from jobs.job import TRAININGS, Job
from jobs.processes import run_fresh
from jobs.worker import run_job
from models.candidate_lists import (
    MOST_REJECTED,
    draw_lists,
    rows_of_lists,
    shuffled_in_steps,
    unrolled,
)
from models.workload import (
    DEFAULT_SHAPE,
    MAX_TOKENS,
    in_order_of_training,
    prepare_model,
    read_rows_file,
    write_rows,
)
from pages.many_rejected import RATE
from pages.results import Results, results_file

from cpo_ds.data.plan import epoch_order, step_totals
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.model.load import load_model_config
from cpo_ds.model.shapes import SHAPES, shape_config
from cpo_ds.model.tokenizer import load_tokenizer

BENCHMARK = "many_rejected"
# Names of the variants -> the job's method; only the first takes lists.
VARIANTS = {"lists": "cpo", "unrolled": "cpo", "trl": "trl-cpo"}


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_and_render(BENCHMARK, lambda folder: run_all(parse(argv), folder))


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Runs all variants with each number of rejected completions in turn, `--repeats` times."""
    jobs = make_jobs(arguments, folder)
    results = Results(
        arguments.out,
        {
            "benchmark": BENCHMARK,
            "model": arguments.shape,
            "rows_per_step": arguments.rows_per_step,
            "data": "lengths drawn from WMT22's candidates",
            "context_tokens": arguments.context_tokens,
        },
    )
    for repeat in range(arguments.repeats):
        for training in arguments.training:
            for (rejected, variant), job in jobs.items():
                own = replace(job, training=training, repeat=repeat)
                measured = run_fresh(run_job, own)
                line = {"variant": variant, "rejected": rejected} | own.settings() | measured
                if "error" not in measured:
                    line |= rates(own, rejected * arguments.rows_per_step, measured["seconds"])
                print(f"{training}, {rejected} rejected, {variant}: {summary(line)}", flush=True)
                results.add(line)
    return results


def make_jobs(arguments: argparse.Namespace, folder: Path) -> dict[tuple[int, str], Job]:
    """The job of each number of rejected completions and variant; writes model and rows."""
    model = prepare_model(arguments, folder)
    vocabulary = load_model_config(model).vocab_size
    steps = arguments.warmup_steps + arguments.steps
    drawn = draw_lists(
        steps, arguments.rows_per_step, arguments.seed, context_tokens=arguments.context_tokens
    )
    max_tokens = MAX_TOKENS + arguments.context_tokens
    jobs = {}
    for rejected in arguments.rejected:
        lengths = [one.with_rejected(rejected) for one in drawn]
        lists = rows_of_lists(lengths, vocabulary, arguments.seed)
        for variant in arguments.variants:
            rows = lists
            if variant != "lists":  # in another order, as a sampler gives them
                rows = shuffled_in_steps(unrolled(lists), steps, arguments.seed)
            pairs_per_step = len(rows) // steps
            file = folder / f"{rejected}-{variant}.json"
            jobs[rejected, variant] = Job(
                method=VARIANTS[variant],
                model=model,
                rows=write_rows(in_order_of_training(rows, arguments.seed), file),
                dtype=arguments.dtype,
                threads=arguments.threads,
                pairs_per_step=pairs_per_step,
                micro_batch_pairs=math.gcd(pairs_per_step, arguments.trl_pairs),
                warmup_steps=arguments.warmup_steps,
                timed_steps=arguments.steps,
                tokens_per_rank=arguments.tokens_per_rank,
                max_tokens=max_tokens,
                deepspeed=arguments.deepspeed,
                seed=arguments.seed,
            )
    return jobs


def rates(job: Job, comparisons_per_step: int, seconds: float) -> dict[str, float]:
    """Comparisons a second, and the tokens for one: unique ones, and positions of the head."""
    pairs, _ = tokenize_rows(
        read_rows_file(job.rows),
        load_tokenizer(job.model),
        max_prompt_tokens=job.max_tokens,
        max_tokens=job.max_tokens,
        add_bos="always",  # as TRL does
    )
    first = job.warmup_steps * job.pairs_per_step
    timed = epoch_order(len(pairs), job.seed, 0).tolist()[first:]
    size = job.micro_batch_pairs or job.pairs_per_step
    cut = [tuple(timed[begin : begin + size]) for begin in range(0, len(timed), size)]
    totals = step_totals([cut], pairs)
    count = job.timed_steps * comparisons_per_step
    assert totals.comparisons == count, "the steps of the runs make other comparisons"
    padded = job.method != "cpo"
    return {
        RATE: round(count / seconds, 4),
        "tokens_per_comparison": round(
            (totals.padded_tokens if padded else totals.unique_tokens) / count, 2
        ),
    }


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal."""
    if "error" in line:
        return str(line["error"])
    rate, peak = line[RATE], line["peak_memory_gib"]
    return f"{rate:.2f} comparisons/s, {peak:.2f} GiB"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(
        description="The cost of a comparison, with 1 to 8 rejected completions.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--shape", help=f"random weights of a shape: {', '.join(SHAPES)} ({DEFAULT_SHAPE})")
    add("--rejected", nargs="+", type=int, default=[1, 2, 4, 8], metavar="K",
        help=f"rejected completions of a row, 1 to {MOST_REJECTED} each (1 2 4 8)")  # fmt: skip
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS),
        help="lists or unrolled pairs in this trainer, unrolled pairs in TRL (all)")  # fmt: skip
    add("--training", nargs="+", choices=TRAININGS, default=["full"],
        help="train all parameters, a LoRA adapter, or both in turn (full)")  # fmt: skip
    add("--rows-per-step", type=int, default=8, help="rows per optimizer step (8)")
    add("--context-tokens", type=int, default=0, metavar="N",
        help="tokens before each source, of examples or a document (0)")  # fmt: skip
    add("--tokens-per-rank", type=int, default=4096, help="tokens of a micro-batch (4096)")
    add("--trl-pairs", type=int, default=8, help="pairs of TRL's micro-batch, at most (8)")
    add_timed_runs(parser, "variant")
    add("--quick", action="store_true", help="a tiny shape and one repeat, to try it out")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/many_rejected_SHAPE-DTYPE_DEVICE.jsonl)")  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.shape, arguments.repeats = arguments.shape or "tiny", 1
    arguments.shape = arguments.shape or DEFAULT_SHAPE
    shape_config(arguments.shape)
    names = (
        "rows_per_step",
        "tokens_per_rank",
        "trl_pairs",
        "steps",
        "warmup_steps",
        "repeats",
        "threads",
    )
    at_least_one(**{name: getattr(arguments, name) for name in names})
    if wrong := [count for count in arguments.rejected if not 1 <= count <= MOST_REJECTED]:
        raise UserError(f"--rejected takes numbers from 1 to {MOST_REJECTED}; it is {wrong[0]}.")
    if arguments.context_tokens < 0:
        raise UserError(f"--context-tokens must be at least 0; it is {arguments.context_tokens}.")
    arguments.model = None
    arguments.threads = set_threads(arguments.threads)
    name = f"{arguments.shape}-{arguments.dtype}"
    if arguments.context_tokens:
        name += f"-context{arguments.context_tokens}"
    arguments.out = results_file(arguments.out, BENCHMARK, name)
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
