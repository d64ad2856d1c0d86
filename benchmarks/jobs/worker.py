"""The process of one job, started by processes.py: python -m jobs.worker JOB.json RESULT.json."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measures.probe import Probe

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from jobs.job import OURS, Job


def main(job_file: Path, result_file: Path) -> int:
    """Does the task of the job file and writes the measurements; returns the exit code."""
    task = json.loads(job_file.read_text(encoding="utf-8"))
    try:
        result = run_task(task)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    result_file.write_text(json.dumps(result), encoding="utf-8")
    return 0


def run_task(task: dict[str, Any]) -> dict[str, Any]:
    """Runs one task: the ceiling, a model to prepare, or a job."""
    if "ceiling" in task:
        return run_ceiling(**task["ceiling"])
    if "model" in task and "method" not in task:
        from models.workload import prepare_model

        return {"folder": prepare_model(argparse.Namespace(**task["model"]), Path(task["folder"]))}
    return run_job(Job(**task))


def run_job(job: Job) -> dict[str, Any]:
    """Trains for the job's steps; returns the values of a line of results."""
    torch.set_num_threads(job.threads)
    limit_memory(job.memory_limit_gib)
    probe = Probe(job.warmup_steps, job.timed_steps)
    with tempfile.TemporaryDirectory() as folder:
        if job.method in OURS:
            from jobs.train_ours import run_ours

            return run_ours(job, probe, folder)
        if job.method == "liger-cpo":
            from jobs.train_liger import run_liger

            return run_liger(job, probe, folder)
        from jobs.train_trl import run_trl

        return run_trl(job, probe, folder)


def run_ceiling(
    shapes: list[list[int]], rows: int, head_rows: int, dtype: str, threads: int
) -> dict[str, float]:
    """Measures the matrix-product ceiling."""
    from measures.ceiling import ceiling_tflops

    torch.set_num_threads(threads)
    pairs = [(inputs, outputs) for inputs, outputs in shapes]
    return {"ceiling_tflops": ceiling_tflops(pairs, rows, head_rows, getattr(torch, dtype))}


def limit_memory(gib: float | None) -> None:
    """Limits the memory of this process: its GPU allocator, or its data (RLIMIT_DATA) on a CPU."""
    if gib is None:
        return
    if torch.cuda.is_available():
        device = int(os.environ.get("LOCAL_RANK", "0"))
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), device)
    else:
        size = int(gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
