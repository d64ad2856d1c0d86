"""This trainer, TRL's CPOTrainer and TRL's DPOTrainer on the same pairs, model and threads.

    python benchmarks/vs_trl.py --model FOLDER [--wmt FILE] [--out benchmarks/results/vs_trl]

Each run is a fresh process; the three take turns, so that a machine that slows down slows all of
them. Only optimizer steps are timed, from pairs in memory to updated weights, after a warm-up;
loading and tokenization are not. Writes OUT.jsonl, a line per run, and OUT.md, the table.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from environment import describe_environment
from pydantic import ValidationError
from vs_trl_report import render_report
from vs_trl_trainers import METHODS, TRAININGS, Job, run_job, tokenize

from cpo_ds.config import DataConfig
from cpo_ds.data.plan import epoch_order, step_totals
from cpo_ds.data.prompts import alma_prompt, parse_direction
from cpo_ds.data.rows import read_rows
from cpo_ds.schema import EXIT_USER_ERROR, PreferenceRow, StepTotals, TokenizedPair, UserError

WMT_CHOSEN, WMT_REJECTED = "gpt-4", "alma-13b-lora"


def main(argv: list[str]) -> int:
    """Runs the benchmark, or one job of it; returns the exit code."""
    if argv[:1] == ["--worker"]:
        return work(Path(argv[1]), Path(argv[2]))
    try:
        arguments = parse(argv)
        environment = describe_environment()
        with tempfile.TemporaryDirectory() as folder:
            jobs, counts, budget = plan_jobs(arguments, Path(folder))
            results = run_all(jobs, counts, Path(f"{arguments.out}.jsonl"), Path(folder))
    except UserError as error:
        print(f"vs_trl: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    about = describe_data(arguments, counts, budget) | environment
    report = render_report(results, about)
    Path(f"{arguments.out}.md").write_text(report, encoding="utf-8")
    print(report)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Times this trainer beside TRL's.")
    add = parser.add_argument
    add("--model", required=True, help="a folder or a Hugging Face name")
    add("--wmt", metavar="FILE", help=f"jsonl.gz of WMT candidates: {WMT_CHOSEN} is preferred "
        f"to {WMT_REJECTED}")  # fmt: skip
    add("--data-format", default="sample", help="else as data.format of a recipe (sample)")
    add("--data-path", help="and its data.path")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="which to run (all)")
    add("--training", nargs="+", choices=TRAININGS, default=TRAININGS, help="LoRA, full or both")
    add("--pairs-per-step", type=int, default=8, help="pairs per optimizer step (8)")
    add("--warmup-steps", type=int, default=1, help="steps before the clock starts (1)")
    add("--timed-steps", type=int, default=6, help="steps on the clock (6)")
    add("--repeats", type=int, default=3, help="processes per method and training (3)")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads (all)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="precision (float32)")
    add("--tokens-per-rank", type=int, help="this trainer's token budget (a step in one pass)")
    add("--gradient-checkpointing", action="store_true", help="in all three (off)")
    add("--deepspeed", default="ds_configs/zero0.json", help="this trainer's DeepSpeed file")
    add("--learning-rate", type=float, default=1e-5, help="(1e-5)")
    add("--lora-rank", type=int, default=16, help="(16); alpha is twice that")
    add("--lora-targets", nargs="+", default=["down_proj"], help="(down_proj)")
    add("--seed", type=int, default=42, help="of the pairs, their order and LoRA (42)")
    add("--out", type=Path, default=Path("benchmarks/results/vs_trl"), help="without suffix")
    arguments = parser.parse_args(argv)
    for name in ("pairs_per_step", "warmup_steps", "timed_steps", "repeats", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return arguments


def plan_jobs(arguments: argparse.Namespace, folder: Path) -> tuple[list[Job], dict[str, int], int]:
    """All runs in the order in which they take turns, counts of the timed steps, token budget."""
    steps = arguments.warmup_steps + arguments.timed_steps
    rows, pairs = select_pairs(read_data(arguments), arguments, steps * arguments.pairs_per_step)
    rows_file = folder / "rows.json"
    rows_file.write_text(json.dumps([vars(row) for row in rows]), encoding="utf-8")
    totals = totals_by_step(pairs, arguments.pairs_per_step, arguments.seed)
    budget = arguments.tokens_per_rank or max(step.unique_tokens for step in totals)
    timed = totals[arguments.warmup_steps :]
    counts = {
        "pairs": sum(step.pairs for step in timed),
        "unique_tokens": sum(step.unique_tokens for step in timed),
        "padded_tokens": sum(step.padded_tokens for step in timed),
    }
    same = ("dtype", "threads", "pairs_per_step", "warmup_steps", "timed_steps", "learning_rate",
            "lora_rank", "lora_targets", "gradient_checkpointing", "deepspeed", "seed")  # fmt: skip
    settings = {name: getattr(arguments, name) for name in same}
    settings |= {"model": arguments.model, "rows": str(rows_file), "tokens_per_rank": budget}
    jobs = [
        Job(method=method, training=training, repeat=repeat, **settings)
        for repeat in range(arguments.repeats)
        for training in arguments.training
        for method in arguments.methods
    ]
    return jobs, counts, budget


def describe_data(
    arguments: argparse.Namespace, counts: dict[str, int], budget: int
) -> dict[str, str]:
    """Model, data and settings as text by name, for the report."""
    source = arguments.wmt and f"{Path(arguments.wmt).name}, {WMT_CHOSEN} over {WMT_REJECTED}"
    per_pair = {name: counts[name] / counts["pairs"] for name in counts}
    return {
        "model": Path(arguments.model).name,
        "data": source or arguments.data_path or "the built-in sample",
        "step": f"{arguments.pairs_per_step} pairs; {arguments.warmup_steps} steps of warm-up, "
        f"{arguments.timed_steps} timed, {arguments.repeats} repeats",
        "tokens per pair": f"{per_pair['unique_tokens']:.1f} unique (what this trainer computes), "
        f"{per_pair['padded_tokens']:.1f} padded (what TRL computes)",
        "micro-batches": f"one per step for TRL; at most {budget} tokens each for this trainer",
        "precision": f"{arguments.dtype}, gradient checkpointing "
        + ("on" if arguments.gradient_checkpointing else "off"),
        "threads": str(arguments.threads),
        "LoRA": f"rank {arguments.lora_rank} on {', '.join(arguments.lora_targets)}",
    }


def read_data(arguments: argparse.Namespace) -> list[PreferenceRow]:
    """All pairs of the data. Raises `UserError` where they cannot be read."""
    if arguments.wmt:
        return read_wmt(Path(arguments.wmt))
    try:
        data = DataConfig(format=arguments.data_format, path=arguments.data_path)
    except ValidationError as error:
        raise UserError(f"--data-format, --data-path: {error.errors()[0]['msg']}.") from None
    return read_rows(data, None)[0]


def read_wmt(path: Path) -> list[PreferenceRow]:
    """Pairs of two systems' translations, without those that are the same.

    Lines hold `language_pair`, `source` and `candidates`, translations by name of system.
    """
    if not path.is_file():
        raise UserError(f"--wmt: there is no file {path}.")
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                direction, candidates = row["language_pair"], row["candidates"]
                chosen, rejected = candidates[WMT_CHOSEN], candidates[WMT_REJECTED]
                prompt = alma_prompt(row["source"], *parse_direction(direction))
            except (json.JSONDecodeError, KeyError) as error:
                raise UserError(
                    f"{path}:{number}: not a line of WMT candidates: {error!r}."
                ) from None
            if chosen != rejected:
                origin = f"{path.name}:{number}"
                rows.append(PreferenceRow(prompt, chosen, rejected, direction, origin))
    return rows


def select_pairs(
    rows: list[PreferenceRow], arguments: argparse.Namespace, count: int
) -> tuple[list[PreferenceRow], list[TokenizedPair]]:
    """`count` pairs at random, directions mixed, none over the limits of length."""
    shuffled = random.Random(arguments.seed).sample(rows, len(rows))[: 2 * count]
    numbered = [
        PreferenceRow(row.prompt, row.chosen, row.rejected, row.direction, str(number))
        for number, row in enumerate(shuffled)
    ]
    pairs, _ = tokenize(numbered, arguments.model)
    if len(pairs) < count:
        raise UserError(
            f"{count} pairs are needed for --pairs-per-step times all steps, but the data has "
            f"{len(pairs)} that fit; take fewer steps or more data."
        )
    pairs = pairs[:count]
    return [numbered[int(pair.origin)] for pair in pairs], pairs


def totals_by_step(pairs: list[TokenizedPair], pairs_per_step: int, seed: int) -> list[StepTotals]:
    """Counts of each step's pairs, taken as one micro-batch."""
    order = epoch_order(len(pairs), seed, 0).tolist()
    steps = [order[i : i + pairs_per_step] for i in range(0, len(order), pairs_per_step)]
    return [step_totals([[tuple(step)]], pairs) for step in steps]


def run_all(
    jobs: list[Job], counts: dict[str, int], lines_file: Path, folder: Path
) -> list[dict[str, Any]]:
    """Runs one job after the other; a line of results is written as soon as there is one."""
    results = []
    lines_file.parent.mkdir(parents=True, exist_ok=True)
    with lines_file.open("w", encoding="utf-8") as lines:
        for number, job in enumerate(jobs, start=1):
            settings = {name: value for name, value in asdict(job).items() if name != "rows"}
            measured = run_in_process(job, folder)
            rates = {name: round(counts[name] / measured["seconds"], 3) for name in counts}
            rates = {f"{name}_per_second": rate for name, rate in rates.items()}
            results.append(settings | rates | measured)
            lines.write(json.dumps(results[-1]) + "\n")
            lines.flush()
            print(
                f"[{number}/{len(jobs)}] {job.method}, {job.training}: "
                f"{rates['pairs_per_second']:.2f} pairs/s, {measured['peak_memory_gib']:.2f} GiB",
                flush=True,
            )
    return results


def run_in_process(job: Job, folder: Path) -> dict[str, Any]:
    """Runs a job in a fresh process. Raises `UserError` with the end of its log where it fails."""
    job_file, result_file = folder / "job.json", folder / "result.json"
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    result_file.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(job_file), str(result_file)],
        env=os.environ | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode or not result_file.exists():
        tail = "\n".join(done.stdout.splitlines()[-20:])
        raise UserError(
            f"the run of {job.method} ({job.training}) ended with exit code {done.returncode}; "
            f"its last lines:\n{tail}"
        )
    return json.loads(result_file.read_text(encoding="utf-8"))


def work(job_file: Path, result_file: Path) -> int:
    """The process of one job."""
    job = Job(**json.loads(job_file.read_text(encoding="utf-8")))
    result_file.write_text(json.dumps(run_job(job)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
