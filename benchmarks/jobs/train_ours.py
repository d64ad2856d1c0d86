"""Times this trainer on a job's pairs: `build_run` and the real loop of `cpo_ds/train.py`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any

import torch
import yaml
from measures.memory_split import HeadWatch, parts_of_peak, states_gib
from measures.probe import Probe, return_freed_memory
from models.workload import read_rows_file

from cpo_ds.config import Config
from cpo_ds.recipe import parse_config
from cpo_ds.schema import TokenizedPair
from jobs.job import BETA, MAX_GRAD_NORM, OURS, WEIGHT_DECAY, Job


def run_ours(
    job: Job, probe: Probe, folder: str, pairs: list[TokenizedPair] | None = None
) -> dict[str, Any]:
    """Trains on the job's pairs with this trainer; returns the measurements.

    Memory is that of the rank that needed most.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from cpo_ds.engine.settings import read_deepspeed_settings
    from cpo_ds.ranks.ranks import init_ranks
    from cpo_ds.run.allocators import keep_freed_memory
    from cpo_ds.run.arithmetic import set_arithmetic
    from cpo_ds.run.build import RunInputs, build_run
    from cpo_ds.run.monitor import SilentMonitor
    from cpo_ds.run.trainer import train

    class Finished(Exception):
        pass

    # The monitor sees each step's loss; the probe says when enough are timed.
    class StepMonitor(SilentMonitor):
        def show(self, line: dict[str, Any]) -> None:
            probe.losses.append(line["loss"])
            if probe.step_is_done():
                raise Finished

    # Build the run as training does, with that monitor.
    config = config_of(job, folder)
    set_arithmetic(deterministic=config.train.deterministic)
    keep_freed_memory()
    settings = read_deepspeed_settings(config)
    ranks = init_ranks()
    pairs = tokenized_pairs(job) if pairs is None else pairs
    probe.libraries_are_loaded()
    run = build_run(RunInputs(config, settings, ranks, pairs))
    run.monitor.close()
    run = replace(run, monitor=StepMonitor())
    with contextlib.suppress(Finished):
        train(run)
    # Split the peak into parts; the rank that needed most speaks for all.
    measured = probe.result()
    parts = split(run, measured["peak_memory_gib"], probe.libraries_gib)
    most = max(ranks.gather(measured | parts), key=lambda one: one["peak_memory_gib"])
    torch.distributed.destroy_process_group()
    memory = {name: value for name, value in most.items() if name.endswith("_gib")}
    return measured | parts | memory


def split(run: Any, peak: float, libraries: float) -> dict[str, float]:
    """Splits the peak of the timed steps into parts, in GiB.

    Trains on the step with the most tokens once more, untimed. Its memory levels make the parts;
    `other_gib` is the rest of the peak.
    """
    from cpo_ds.losses import pair_terms, step_share
    from cpo_ds.run.trainer import plan

    steps = [plan(run, step) for step in range(1, run.total_steps + 1)]
    batches, totals = max(steps, key=lambda step: step[1].unique_tokens)  # alike on all ranks
    # One step, its memory read at the borders of the head.
    return_freed_memory()
    watch = HeadWatch(run.engine.policy)
    for batch in batches:
        watch.begin()
        terms = pair_terms(run.engine.score(batch), run.config.loss)
        share = step_share(terms, totals, run.config.loss)
        run.engine.accumulate(share * float(batch.counted))
        watch.end()
        del terms, share
    # Model states as held before the update, then the parts.
    held = states_gib(run.engine.policy, run.engine.reference, run.engine.sharded_optimizer)
    run.engine.update(run.config.optim.learning_rate)
    levels = max(watch.seen, key=lambda seen: seen.peak)
    parts = parts_of_peak(peak, libraries, held, levels)
    sizes = {f"{name}_gib": round(value, 4) for name, value in parts.items()}
    return sizes | {
        "gradients_whole_gib": round(held["gradients"], 4),
        "head_growth_gib": round(levels.in_head - levels.head_begin, 4),
    }


def tokenized_pairs(job: Job) -> list[TokenizedPair]:
    """The job's pairs in this trainer's tokens."""
    from cpo_ds.data.tokenize import tokenize_rows
    from cpo_ds.model.tokenizer import load_tokenizer

    rows, longest = read_rows_file(job.rows), job.max_tokens
    tokenizer = load_tokenizer(job.model)
    return tokenize_rows(
        rows, tokenizer, max_prompt_tokens=longest, max_tokens=longest, add_bos="always"
    )[0]


def config_of(job: Job, folder: str) -> Config:
    """The recipe of a job. Raises `UserError` for a value that the recipe refuses."""
    # The same optimizer settings as in the other trainers.
    lora = {
        "rank": job.lora_rank,
        "alpha": 2 * job.lora_rank,
        "dropout": 0.0,
        "target_modules": job.lora_targets,
    }
    values: dict[str, Any] = {
        "model": {
            "name_or_path": job.model,
            "dtype": job.dtype,
            "gradient_checkpointing": job.gradient_checkpointing,
        },
        "data": {"format": "pairs", "path": job.rows, "add_bos": "always"},  # as TRL
        "loss": {"beta": BETA} | OURS[job.method],
        "lora": lora if job.training == "lora" else None,
        "optim": {
            "learning_rate": job.learning_rate,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": WEIGHT_DECAY,
            "max_grad_norm": MAX_GRAD_NORM,
        },
        "batch": {"pairs": job.pairs_per_step, "tokens_per_rank": job.tokens_per_rank},
        "train": {"seed": job.seed},
        "logging": {"tensorboard": False},
        "deepspeed": job.deepspeed,
        "output_dir": folder,
    }
    for setting in job.recipe:
        name, _, value = setting.partition("=")
        section, _, field = name.partition(".")
        values[section] = values.get(section, {}) | {field: yaml.safe_load(value)}
    return parse_config(values, "the benchmark's settings")
