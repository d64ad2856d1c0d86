"""The process of a pair of runs of `optimizer_states.py`, whose optimizer states alone differ.

    python -m jobs.states_worker TASK.json RESULT.json

Both train on the same pairs in the same order. The result holds two lists of measurements.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

DIRECTIONS = ["en-de", "zh-en", "cs-en", "en-ru"]  # 94 pairs, and 10 held out


def main(task_file: Path, result_file: Path) -> None:
    """Trains with states in float32 and in bfloat16; writes both runs' measurements."""
    from cpo_ds.ranks.quiet import silence_after_import, silence_libraries
    from cpo_ds.ranks.ranks import init_ranks

    silence_libraries()
    ranks = init_ranks()
    silence_after_import()
    task = json.loads(task_file.read_text(encoding="utf-8"))
    exact, exact_change = _train(task, "float32", ranks)
    rounded, change = _train(task, "bfloat16", ranks)
    # Changes of all weights, as if each were one long vector.
    exact |= {"change_ratio": 1.0, "change_cosine": 1.0}
    norms = exact_change.norm().item(), change.norm().item()
    rounded["change_ratio"] = norms[1] / norms[0]
    rounded["change_cosine"] = torch.dot(exact_change, change).item() / max(
        norms[0] * norms[1], 1e-30
    )
    result_file.write_text(json.dumps([exact, rounded]), encoding="utf-8")
    torch.distributed.destroy_process_group()


def configuration(task: dict[str, Any], states: str) -> Any:
    """The recipe of a run: all parameters, in bfloat16, at a constant learning rate."""
    from cpo_ds.recipe import parse_config

    values: dict[str, Any] = {
        "model": {"name_or_path": task["model"], "dtype": "bfloat16"},
        "data": {
            "format": "sample",
            "directions": DIRECTIONS,
            "eval_fraction": 0.1,
            "add_bos": "always",
        },
        "batch": {"pairs": task["pairs"]},
        "train": {"max_steps": task["steps"], "epochs": task["steps"], "seed": task["seed"]},
        "optim": {
            "learning_rate": task["learning_rate"],
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "states": states,
        },
        "logging": {"tensorboard": False},
        "deepspeed": "ds_configs/zero2.json",
        "output_dir": f"{task['folder']}/{states}",
    }
    return parse_config(values, "optimizer_states")


def _train(task: dict[str, Any], states: str, ranks: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """Trains one run; returns its measurements and the change of its weights, flat."""
    from cpo_ds.engine.rounding import lost_share
    from cpo_ds.engine.settings import read_deepspeed_settings
    from cpo_ds.run.build import RunInputs, build_run
    from cpo_ds.run.pairs import prepare_pairs
    from cpo_ds.run.trainer import evaluate

    config = configuration(task, states)
    _, pairs, held_out, _ = prepare_pairs(config, prints_counts=False)
    settings = read_deepspeed_settings(config)
    run = build_run(RunInputs(config, settings, ranks, pairs, held_out))
    weights = run.engine.whole_parameters(trained_only=True)
    lost = lost_share(weights, config.optim.learning_rate)
    # Train, between two evaluations.
    before = _master_copy(run)
    evaluate(run, 0)
    losses = [_step(run, step) for step in range(1, task["steps"] + 1)]
    evaluate(run, task["steps"])
    change = _master_copy(run) - before
    # Held-out losses are in the file of metrics.
    run.monitor.close()
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, last = (json.loads(line)["eval_loss"] for line in lines)
    measured = {
        "states": states,
        "losses": losses,
        "held_out_before": first,
        "held_out_after": last,
        "lost_share": lost,
        "changed_share": torch.count_nonzero(change).item() / change.numel(),
    }
    return measured, change


def _master_copy(run: Any) -> torch.Tensor:
    """The optimizer's own copy of all weights, flat, which at stage 2 on one rank is whole."""
    groups = run.engine.optimizer.param_groups
    return torch.cat([group["params"][0].detach().float() for group in groups])


def _step(run: Any, step: int) -> float:
    """Trains a step; returns its loss."""
    from cpo_ds.losses import pair_terms, step_share
    from cpo_ds.run.trainer import plan

    batches, totals = plan(run, step)
    loss = 0.0
    for batch in batches:
        share = step_share(
            pair_terms(run.engine.score(batch), run.config.loss), totals, run.config.loss
        )
        run.engine.accumulate(share)
        loss += share.item()
    run.engine.update(run.config.optim.learning_rate)
    return loss


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
