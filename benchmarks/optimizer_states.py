"""Compares training with optimizer states in float32 and in bfloat16 (`optim.states`).

    python scripts/make_demo_model.py runs/smollm2
    python benchmarks/optimizer_states.py --model runs/smollm2

All parameters are trained in bfloat16 on pairs of the built-in sample, at constant learning rates
and with several seeds. Each seed trains both ways on the same pairs in the same order, in a fresh
process. A second measurement feeds AdamW with random gradients and compares second moments.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from jobs.processes import run_ranks
from pages.results import Results, device_name, render_file, results_file

_TIMEOUT_SECONDS = 1800.0


def main() -> None:
    """Runs all pairs of runs, writes a line for each run, and renders the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="a model's folder or name")
    add("--name", default="smollm2-135m", help="the model's name on the page (smollm2-135m)")
    add("--learning-rates", type=float, nargs="+", default=[2e-6, 2e-5], help="(2e-6 2e-5)")
    add("--seeds", type=int, default=3, help="runs of each kind (3)")
    add("--steps", type=int, default=20, help="optimizer steps of a run (20)")
    add("--pairs", type=int, default=2, help="pairs in a step (2)")
    add("--threads", type=int, default=1, help="threads of a CPU (1)")
    add("--out", type=Path, help="results; a page is written beside it")
    arguments = parser.parse_args()
    # Second moments first, since they take seconds; every line has them.
    moments = {str(beta): second_moments(beta, steps=2000) for beta in (0.999, 0.998, 0.99, 0.95)}
    shared = {
        "benchmark": "states",
        "model": arguments.name,
        "steps": arguments.steps,
        "pairs": arguments.pairs,
        "second_moments": moments,
    }
    file = results_file(arguments.out, "optimizer_states", arguments.name)
    results = Results(file, shared)
    for rate in arguments.learning_rates:
        for seed in range(arguments.seeds):
            for run in train_both(arguments, rate, seed):
                results.add({"learning_rate": rate, "seed": seed} | run)
    render_file(file)
    print(f"written to {file.with_suffix('.md')} ({device_name()})")


def train_both(arguments: argparse.Namespace, rate: float, seed: int) -> list[dict[str, Any]]:
    """Trains a seed with states in float32 and in bfloat16; returns both runs' measurements."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        task_file, result_file = Path(name) / "task.json", Path(name) / "result.json"
        task = {
            "model": str(Path(arguments.model).resolve()),
            "learning_rate": rate,
            "seed": seed,
            "steps": arguments.steps,
            "pairs": arguments.pairs,
            "folder": name,
        }
        task_file.write_text(json.dumps(task), encoding="utf-8")
        command = [sys.executable, "-m", "jobs.states_worker", str(task_file), str(result_file)]
        environment = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
        if not torch.cuda.is_available():
            environment["DS_ACCELERATOR"] = "cpu"
        ((code, printed),) = run_ranks([command], Path(name), _TIMEOUT_SECONDS, **environment)
        if code != 0:
            raise RuntimeError(printed[-3000:])
        return json.loads(result_file.read_text(encoding="utf-8"))


def second_moments(beta: float, *, steps: int, weights: int = 4096) -> dict[str, float]:
    """How much of AdamW's exact second moments, in the mean, is left in bfloat16.

    `steady` is after `steps` steps with gradients of one scale, `after` after as many more with
    gradients of a tenth of it.
    """
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    optimizers = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter(torch.ones(weights, dtype=dtype, device=device))
        adamw = torch.optim.AdamW([parameter], lr=0.0, betas=(0.9, beta), fused=True)
        optimizers.append((parameter, adamw))
    shares = {}
    for name, scale in (("steady", 1.0), ("after", 0.1)):
        for _ in range(steps):
            gradient = (scale * torch.randn(weights, generator=generator)).bfloat16().to(device)
            for parameter, adamw in optimizers:
                parameter.grad = gradient.to(parameter.dtype)
                adamw.step()
        exact, rounded = (
            adamw.state[parameter]["exp_avg_sq"].float().mean().item()
            for parameter, adamw in optimizers
        )
        shares[name] = rounded / exact
    return shares


if __name__ == "__main__":
    main()
