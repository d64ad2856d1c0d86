"""`deepspeed: auto` and `model.gradient_checkpointing: auto` in runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from runs import LORA, run_recipe, small_recipe

AUTO = ("--deepspeed", "auto", "--model.gradient_checkpointing", "auto")


@pytest.mark.parametrize("stage", [None, 2])
def test_on_cpus_nothing_is_split_unless_the_checkpoint_is(
    stage: int | None, tmp_path: Path
) -> None:
    recipe, output = small_recipe(tmp_path, stage=2, lora=LORA), tmp_path / "run"
    first = AUTO if stage is None else ()
    done = run_recipe(recipe, output, *first, "--train.max_steps", 3)
    assert done.code == 0, done.output
    # Resumed, it keeps the stage.
    done = run_recipe(recipe, output, *AUTO, "--train.max_steps", 5)
    assert done.code == 0 and "at step 3 of 5" in done.output, done.output
    taken = "zero0" if stage is None else "zero2"
    assert f"deepspeed: auto takes {taken}, since the memory of CPUs" in done.output
    assert "model.gradient_checkpointing: auto recomputes no layer" in done.output
    # What was taken is written down.
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert (config["deepspeed"], config["model"]["gradient_checkpointing"]) == (taken, 0)
    manifest = json.loads((output / "checkpoints/step-00000005/manifest.json").read_text())
    assert manifest["zero_stage"] == (stage or 0)
