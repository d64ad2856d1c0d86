"""The folder of a finished run, its metrics written down without training."""

from __future__ import annotations

import json
from pathlib import Path


def write_run(folder: Path) -> None:
    """Writes metrics of two held-out evaluations around three steps of training."""

    def held_out(step: int, accuracy: float) -> dict:
        values = {"eval_loss": 2.0 - accuracy, "eval_reward_margin": accuracy / 2}
        directions = {"en-de": {"pairs": 4, "reward_accuracy": accuracy}}
        return {
            "step": step, "eval_pairs": 4, "eval_reward_accuracy": accuracy,
            "eval_directions": directions, **values,
        }  # fmt: skip

    training = [
        {"step": step, "loss": 1.0 / step, "reward_accuracy": 0.5, "reward_margin": 0.1}
        for step in (1, 2, 3)
    ]
    lines = [held_out(0, 0.25), *training, held_out(3, 0.75)]
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
