"""Memory and throughput of CPO beside DPO, and beside TRL and Liger, on the same pairs.

    python benchmarks/memory_vs_dpo.py                    # SmolLM2-135M's shape, WMT22's lengths
    python benchmarks/memory_vs_dpo.py --shape tiny --steps 3            # a minute, to try it out
    deepspeed --num_accelerators 8 benchmarks/memory_vs_dpo.py --shape llama-2-7b --dtype bfloat16

Each run is a fresh process; the methods take turns, so that a machine that slows down slows all of
them. Only optimizer steps are timed, from pairs in memory to updated weights, after a warm-up.
Writes a line per run to OUT.jsonl as soon as there is one, then OUT.md and charts beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from jobs.campaign import Campaign
from jobs.command import add_dtype
from jobs.job import BENCHMARK, METHODS, OURS, TRAININGS
from jobs.processes import OUT_OF_MEMORY
from jobs.team import Team
from models.workload import DEFAULT_SHAPE, WMT_CHOSEN, WMT_REJECTED
from pages.results import render_file, results_file

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.model.shapes import SHAPES, shape_config
from cpo_ds.ranks.quiet import silence_libraries

_FAILED = 1


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    try:
        arguments = parse(argv)
        silence_libraries()
        team = Team()
        with tempfile.TemporaryDirectory() as folder:
            lines = Campaign(arguments, team, Path(folder)).run()
            team.part()
        if team.rank == 0:
            render_file(arguments.out)
            print(arguments.out.with_suffix(".md").read_text(encoding="utf-8"))
    except UserError as error:
        print(f"memory_vs_dpo: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    errors = [line["error"] for line in lines if line.get("error")]
    expected = (OUT_OF_MEMORY, "not run")
    return 0 if all(error.startswith(expected) for error in errors) else _FAILED


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values that exclude each other."""
    parser = argparse.ArgumentParser(
        description="Memory and throughput of CPO beside DPO.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", help="a folder or a Hugging Face name")
    add("--shape", help=f"random weights of a shape instead: {', '.join(SHAPES)} "
        f"({DEFAULT_SHAPE})")  # fmt: skip
    add("--methods", nargs="+", choices=(*METHODS, "all"), default=list(OURS), metavar="METHOD",
        help=f"which to run: {', '.join(METHODS)}, or all (the first {len(OURS)})")  # fmt: skip
    add("--training", nargs="+", choices=TRAININGS, default=list(TRAININGS),
        help="train all parameters, a LoRA adapter, or both in turn (both)")  # fmt: skip
    add("--data-format", help="pairs of a file, as data.format of a recipe (synthetic pairs of "
        "WMT22's lengths)")  # fmt: skip
    add("--data-path", help="path of that file, as data.path of a recipe")
    add("--wmt", metavar="FILE", help=f"jsonl.gz of WMT candidates: {WMT_CHOSEN} is preferred "
        f"to {WMT_REJECTED}")  # fmt: skip
    add("--sequence-lengths", nargs="+", type=int, metavar="L",
        help="synthetic pairs with sequences of L tokens each, one L after the other")  # fmt: skip
    add("--pairs-per-step", type=int, default=8, help="pairs per optimizer step (8)")
    add("--tokens-per-rank", type=int, help="most unique tokens of a micro-batch in this trainer "
        "(a step in one); the others always take a step in one")  # fmt: skip
    add("--steps", type=int, default=4, help="steps on the clock (4)")
    add("--warmup-steps", type=int, default=1, help="steps before the clock starts (1)")
    add("--repeats", type=int, default=1, help="processes per method and training (1)")
    add("--append", action="store_true", help="add repeats to the lines that --out already "
        "holds (without it --out begins anew)")  # fmt: skip
    add("--threads", type=int, help="CPU threads of each rank (all cores, shared)")
    add_dtype(parser)
    add("--deepspeed", default="ds_configs/zero0.json", metavar="FILE",
        help="this trainer's DeepSpeed file (ds_configs/zero0.json)")  # fmt: skip
    add("--gradient-checkpointing", action="store_true", help="in all methods (off)")
    add("--learning-rate", type=float, default=1e-5, help="(1e-5)")
    add("--lora-rank", type=int, default=16, help="rank of the adapter (16); its alpha is twice it")
    add("--lora-targets", nargs="+", default=["down_proj"], metavar="LAYER",
        help="layers that LoRA adapts (down_proj)")  # fmt: skip
    add("--seed", type=int, default=42, help="of weights, pairs, their order and LoRA (42)")
    add("--find-limit", action="store_true", help="also find the largest micro-batch that fits, "
        "in a process for each try; on a CPU it needs --memory-limit")  # fmt: skip
    add("--limit-from", type=int, default=1, metavar="PAIRS", help="where that search begins (1)")
    add("--limit-within", type=float, default=0.0, metavar="SHARE", help="how far below the true "
        "limit it may end: 0.1 saves a quarter of the tries (0)")  # fmt: skip
    add("--minutes", type=float, help="begin no run after so many minutes (no limit)")
    add("--memory-limit", type=float, metavar="GIB", help="most memory of a process: on a GPU, "
        "or of its data on a CPU (no limit)")  # fmt: skip
    add("--timeout", type=float, default=3600.0, metavar="SECONDS", help="longest time of a "
        "process (3600)")  # fmt: skip
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and charts are written "
        "beside it (benchmarks/results/memory_vs_dpo_MODEL_DEVICE.jsonl)")  # fmt: skip
    add("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    # Refuse impossible combinations, then fill in defaults.
    arguments = parser.parse_args(argv)
    check(arguments)
    fill_in(arguments)
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for numbers out of range and for options that exclude each other."""
    # Numbers out of range.
    least = {"pairs_per_step": 1, "warmup_steps": 1, "steps": 1, "lora_rank": 1, "threads": 1,
             "repeats": 0 if arguments.find_limit else 1, "tokens_per_rank": 1,
             "limit_from": 1}  # fmt: skip
    for name, bound in least.items():
        value = getattr(arguments, name)
        if value is not None and value < bound:
            raise UserError(f"--{name.replace('_', '-')} must be at least {bound}; it is {value}.")
    # Options that need others or exclude them.
    given = [f"--{name}" for name in ("wmt", "data_format") if getattr(arguments, name)]
    if arguments.data_path and not arguments.data_format:
        raise UserError("--data-path needs --data-format, as data.format of a recipe.")
    if arguments.find_limit and arguments.tokens_per_rank:
        raise UserError("--find-limit looks for the largest micro-batch; leave --tokens-per-rank.")
    if arguments.model and arguments.shape:
        raise UserError("give --model or --shape, not both.")
    if given and not arguments.model:
        raise UserError(
            f"{given[0].replace('_', '-')} gives text, and a shape has no tokenizer for it; give "
            "--model, or leave the data to synthetic pairs."
        )
    if len(given) > 1 or (given and arguments.sequence_lengths):
        raise UserError("give one of --wmt, --data-format and --sequence-lengths, not two.")
    if any(length < 4 for length in arguments.sequence_lengths or ()):
        raise UserError("--sequence-lengths must be at least 4 each.")
    if arguments.memory_limit is not None and arguments.memory_limit <= 0:
        raise UserError("--memory-limit must be more than 0 GiB.")
    if arguments.find_limit and arguments.memory_limit is None and not torch.cuda.is_available():
        raise UserError(
            "--find-limit on a CPU needs --memory-limit GIB: without it, the search would take all "
            "memory of this machine from whatever else runs on it."
        )


def fill_in(arguments: argparse.Namespace) -> None:
    """Fills in defaults that depend on the machine or on other options. Raises `UserError`."""
    if not arguments.model:
        arguments.shape = arguments.shape or DEFAULT_SHAPE
        shape_config(arguments.shape)
    if "all" in arguments.methods:
        arguments.methods = list(METHODS)
    arguments.model_name = Path(arguments.model).name if arguments.model else arguments.shape
    ranks_here = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    cores = len(os.sched_getaffinity(0))
    arguments.threads = arguments.threads or max(1, cores // ranks_here)
    arguments.out = results_file(arguments.out, BENCHMARK, arguments.model_name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
