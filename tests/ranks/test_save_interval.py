"""Checkpoints by time: rank 0's clock decides for all ranks, beside the number of steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launch import on_ranks
from runs import small_recipe
from workers.clocks import train_by_clock


def saved_steps(recipe: Path, output: Path, ranks: int, *arguments: str) -> list[int]:
    """The steps whose checkpoints a start of eight steps saves."""
    options = ["--config", str(recipe), "--output_dir", str(output), *arguments]
    first, *others = on_ranks(train_by_clock, options, ranks=ranks)
    assert first.code == 0 and not any(other.code for other in others), first.output
    return [int(step) for step in re.findall(r"saved \S*/step-0*(\d+) ", first.output)]


@pytest.mark.parametrize(("ranks", "background"), [(1, "false"), (2, "false"), (3, "true")])
def test_a_checkpoint_is_due_by_steps_or_by_minutes(
    ranks: int, background: str, tmp_path: Path
) -> None:
    """A step is a minute on rank 0; the clock of another rank runs backwards or ahead."""
    recipe = small_recipe(
        tmp_path,
        train={"eval_every_steps": None},
        data={"directions": ["en-de"], "eval_fraction": 0.0},
        batch={"pairs": 3},
        checkpoint={
            "every_steps": None,
            "keep_last": 9,
            "export": False,
            "in_background": background == "true",
        },
    )
    minutes = "--checkpoint.every_minutes=2.5"
    by_time = tmp_path / "by-time"
    assert saved_steps(recipe, by_time, ranks, minutes) == [3, 6, 8]
    by_both = tmp_path / "by-both"
    assert saved_steps(recipe, by_both, ranks, minutes, "--checkpoint.every_steps=4") == [
        3,
        4,
        7,
        8,
    ]
    # A start that goes on after step 4 counts from there, not from the checkpoint's age.
    resume = f"--checkpoint.resume={by_both / 'checkpoints' / 'step-00000004'}"
    assert saved_steps(recipe, by_both, ranks, minutes, resume) == [7, 8]
