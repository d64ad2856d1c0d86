"""The share of each part of a training step: matrix products, attention, norm, RoPE, and others.

    python benchmarks/profile_step.py                                  # SmolLM2-135M's shape
    python benchmarks/profile_step.py --shape tiny --tokens 1024       # seconds, to try it out
    python benchmarks/profile_step.py --shape llama-2-7b --dtype bfloat16 --tokens 16384

Times some steps, then records one more with torch's profiler. Pairs have the lengths of WMT22's.
Writes a line per run to OUT.jsonl, then OUT.md and a chart beside it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jobs.command import add_dtype, at_least_one, run_and_render, set_threads
from jobs.job import TRAININGS, Job
from jobs.processes import run_fresh
from jobs.profile_run import profile_job
from jobs.train_ours import config_of
from jobs.worker import run_ceiling
from models.planned_memory import allocated_gib
from models.synthetic import draw_lengths, save_random_model
from models.workload import (
    DEFAULT_SHAPE,
    Workload,
    make_workload,
    matrix_weights,
    write_rows,
)
from pages.results import Results, results_file

from cpo_ds.errors import UserError
from cpo_ds.model.flops import MatrixWeights, step_flops
from cpo_ds.model.shapes import SHAPES, shape_config
from cpo_ds.run.throughput import known_gpu

BENCHMARK = "profile"
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_and_render("profile_step", lambda folder: run_all(parse(argv), folder))


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Profiles each training with each recomputation, in a fresh process each."""
    # A process of its own makes the model, so that this one holds no GPU memory.
    made = run_fresh(_save_model, arguments.shape, str(folder / "model"), arguments.dtype,
                     arguments.seed)  # fmt: skip
    if "error" in made:
        raise UserError(f"the model could not be made: {made['error']}.")
    steps = (arguments.warmup_steps, arguments.steps + 1)  # one under the profiler
    workload = make_workload(
        arguments, made["folder"], arguments.pairs_per_step, steps, sequence_length=None
    )
    job = Job(
        model=made["folder"],
        rows=write_rows(workload.rows, folder / "rows.json"),
        dtype=arguments.dtype,
        threads=arguments.threads,
        pairs_per_step=arguments.pairs_per_step,
        warmup_steps=arguments.warmup_steps,
        timed_steps=arguments.steps + 1,
        tokens_per_rank=workload.most_tokens,
        max_tokens=workload.max_tokens,
        lora_targets=arguments.lora_targets,
        deepspeed=arguments.deepspeed,
        recipe=arguments.set,
        seed=arguments.seed,
    )
    # Measure the ceiling, then each case.
    body, head, shapes = matrix_weights(shape_config(arguments.shape))
    ceiling = run_fresh(
        run_ceiling, shapes, *_rows_of_a_step(workload, job), job.dtype, job.threads
    )
    shared = {"benchmark": BENCHMARK, "model": arguments.shape, "weights": "random"}
    results = Results(arguments.out, shared)
    for training in arguments.training:
        for recomputed in arguments.recompute:
            one = replace(job, training=training, gradient_checkpointing=recomputed)
            measured = run_fresh(profile_job, one)
            if "error" not in measured:
                weights = MatrixWeights(body, head)
                measured |= rates(measured, workload, one, weights, ceiling.get("ceiling_tflops"))
                measured |= {"planned_gib": planned(one, folder)}
            line = results.add(one.settings() | measured)
            print(f"{training}, recompute {recomputed}: {summary(line)}", flush=True)
    return results


def _save_model(shape: str, folder: str, dtype: str, seed: int) -> dict[str, Any]:
    save_random_model(shape, Path(folder), dtype, seed)
    return {"folder": folder}


def _rows_of_a_step(workload: Workload, job: Job) -> tuple[int, int]:
    """Tokens and scored tokens of a mean step."""
    totals = workload.totals
    return (
        max(1, totals.unique_tokens // job.timed_steps),
        max(1, totals.scored_tokens // job.timed_steps),
    )


def rates(
    measured: dict[str, Any],
    workload: Workload,
    job: Job,
    weights: MatrixWeights,
    ceiling: float | None,
) -> dict[str, Any]:
    """Tokens a second, and TFLOP/s beside the ceiling and the vendor's peak."""
    tokens, scored = _rows_of_a_step(workload, job)
    seconds = mean(measured["step_seconds"])
    work = step_flops(weights, tokens, scored, trains_adapter=job.training == "lora")
    tflops = work / seconds / 1e12
    peak = peak_tflops(job.dtype)
    return {
        "tokens_per_step": tokens,
        "tokens_per_second": round(tokens / seconds, 2),
        "pairs_per_second": round(job.pairs_per_step / seconds, 4),
        "model_tflops": float(f"{tflops:.4g}"),
        "ceiling_tflops": ceiling and float(f"{ceiling:.4g}"),
        "utilization": ceiling and round(tflops / ceiling, 4),
        "of_peak": peak and round(tflops / peak, 4),
    }


def planned(job: Job, folder: Path) -> float:
    """The planner's estimate of `peak_memory_gib` on a GPU."""
    config = config_of(job, str(folder))
    return round(allocated_gib(config), 4)


def peak_tflops(dtype: str) -> float | None:
    """The vendor's peak of this machine's GPU; None without a GPU that is known."""
    known = known_gpu(torch.device("cuda", 0)) if torch.cuda.is_available() else None
    return known.peak_bf16_tflops if known and known.knows_peak(dtype) else None


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal."""
    if "error" in line:
        return str(line["error"])
    return f"{line['tokens_per_second']:.0f} tokens/s, {line['peak_memory_gib']:.2f} GiB"


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(description="A step in parts.", allow_abbrev=False)
    add = parser.add_argument
    add("--shape", default=DEFAULT_SHAPE, help=f"random weights of a shape: {', '.join(SHAPES)} "
        f"({DEFAULT_SHAPE})")  # fmt: skip
    add("--training", nargs="+", choices=TRAININGS, default=["lora"],
        help="train a LoRA adapter, all parameters, or both in turn (lora)")  # fmt: skip
    add("--recompute", nargs="+", type=_recomputed, default=[False], metavar="LAYERS",
        help="layers whose activations are recomputed: none, all, a number, or several of these in "
        "turn (none)")  # fmt: skip
    add("--tokens", type=int, default=2048, help="about as many unique tokens a step, which is one "
        "micro-batch (2048)")  # fmt: skip
    add("--steps", type=int, default=3, help="steps on the clock, before the profiled one (3)")
    add("--warmup-steps", type=int, default=2, help="steps before the clock starts (2)")
    add("--threads", type=int, help="CPU threads (all cores)")
    add_dtype(parser)
    add("--deepspeed", default="ds_configs/zero0.json", metavar="FILE",
        help="DeepSpeed file (ds_configs/zero0.json)")  # fmt: skip
    add("--lora-targets", nargs="+", default=_LINEAR, metavar="LAYER",
        help="layers that LoRA adapts (all linear ones)")  # fmt: skip
    add("--set", nargs="+", default=[], metavar="SECTION.FIELD=VALUE", help="more settings of the "
        "recipe")  # fmt: skip
    add("--seed", type=int, default=42, help="of weights, pairs and their order (42)")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/profile_SHAPE_DEVICE.jsonl)")  # fmt: skip
    arguments = parser.parse_args(argv)
    # Check the numbers, fill in defaults.
    names = ("tokens", "steps", "warmup_steps", "threads")
    at_least_one(**{name: getattr(arguments, name) for name in names})
    shape_config(arguments.shape)
    arguments.model = arguments.wmt = arguments.data_format = None
    arguments.pairs_per_step = pairs_of(arguments.tokens, arguments.seed)
    arguments.threads = set_threads(arguments.threads)
    arguments.out = results_file(arguments.out, BENCHMARK, arguments.shape)
    return arguments


def _recomputed(word: str) -> bool | int:
    return {"none": False, "all": True}[word] if word in ("none", "all") else int(word)


def pairs_of(tokens: int, seed: int) -> int:
    """Pairs of WMT22's lengths that have about so many unique tokens, at least one."""
    drawn = draw_lengths(1, 64, seed)
    return max(1, round(tokens / mean(pair.unique for pair in drawn)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
