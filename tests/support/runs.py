"""Runs that tests interrupt: a small recipe, the ranks' processes, metrics without timings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from helpers import save_tiny_model
from launch import Finished, ForkedRanks, Run, finish, main_on_ranks, write_recipe

TIMED = {"step_seconds", "pairs_per_second", "tokens_per_second", "peak_memory_gib"}
TIMED |= {"model_tflops", "mfu"}
DIRECTIONS = ["en-de", "zh-en", "cs-en", "en-ru"]  # 94 pairs, and 10 held out
LORA = {"rank": 4, "alpha": 8, "dropout": 0.05, "target_modules": ["q_proj", "down_proj"]}


def small_recipe(folder: Path, *, stage: int = 3, **sections: Any) -> Path:
    """A recipe that trains a tiny model on the built-in sample; `sections` change it."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 256}
    model = save_tiny_model(folder / "model", tie_word_embeddings=True, **sizes)
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    (folder / "deepspeed.json").write_text(json.dumps({"zero_optimization": zero}))
    values: dict[str, Any] = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {
            "format": "sample",
            "directions": DIRECTIONS,
            "eval_fraction": 0.1,
            "add_bos": "always",  # as TRL, with which some tests compare
        },
        "batch": {"pairs": 8, "tokens_per_rank": 1024},
        "train": {"max_steps": 8, "eval_every_steps": 2},
        "optim": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_ratio": 0.25},
        "checkpoint": {"every_steps": 3},
        "logging": {"tensorboard": False},
        "deepspeed": str(folder / "deepspeed.json"),
    }
    for name, settings in sections.items():
        values[name] = values.get(name, {}) | settings if settings is not None else None
    return write_recipe(folder, values)


def run_recipe(recipe: Path, output: Path, *arguments: object, ranks: int = 2) -> Finished:
    """Runs a recipe and returns rank 0's end; the other ranks must have ended too."""
    first, *others = main_on_ranks(
        "--config", recipe, "--output_dir", output, *arguments, ranks=ranks
    )
    assert "Traceback" not in first.output, first.output
    assert all(other.code in (first.code, -9) for other in others), others
    return first


def undisturbed_run(recipe: Path, ranks: int) -> Path:
    """Runs a recipe to its end; returns its output folder, beside the recipe."""
    folder = recipe.parent / "whole"
    for done in main_on_ranks("--config", recipe, "--output_dir", folder, ranks=ranks):
        assert done.code == 0, done.output
    return folder


def lines(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the timings, which differ between equal runs."""
    text = (output / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in text]


def newest(output: Path) -> str:
    """The name of the checkpoint that `latest` names."""
    return (output / "checkpoints" / "latest").read_text()


def wait_for_step(run: Run, output: Path, step: int) -> None:
    """Returns as soon as a step's line is written."""
    wait_until(run, lambda: f'{{"step": {step},' in _text(output / "metrics.jsonl"))


def wait_until(run: Run, happened: Callable[[], bool]) -> None:
    """Waits for something to happen while a run goes on."""
    deadline = time.monotonic() + 180
    while not happened():
        assert run.poll() is None and time.monotonic() < deadline, finish(run, 1).output
        time.sleep(0.005)


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def rank_processes(run: Run) -> dict[int, psutil.Process]:
    """The processes of the ranks of a run, by rank."""
    if isinstance(run, ForkedRanks):
        return {rank: psutil.Process(process.pid) for rank, process in enumerate(run.processes)}
    by_rank = {}
    for process in psutil.Process(run.pid).children(recursive=True):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if "RANK" in environment:
            by_rank[int(environment["RANK"])] = process
    return by_rank
