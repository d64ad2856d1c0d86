"""Translations at evaluations: training stays as it is, and a resumed run has each of them once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch import kill, start_ranks
from runs import DIRECTIONS, LORA, lines, run_recipe, small_recipe, wait_for_step

EVALUATIONS = [0, 2, 4, 6, 8]


def samples(output: Path) -> list[dict[str, Any]]:
    file = output / "samples.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_samples_leave_training_as_it_is_and_resume(tmp_path: Path) -> None:
    quiet = {"checkpoint": {"every_steps": 3, "export": False}, "lora": LORA}
    recipe = small_recipe(tmp_path, **quiet)
    arguments = ("--train.sample_translations", 3)
    without, whole, killed = (tmp_path / name for name in ("without", "whole", "killed"))
    assert run_recipe(recipe, without).code == 0
    assert not (without / "samples.jsonl").exists()

    done = run_recipe(recipe, whole, *arguments, "--logging.tensorboard", "true")
    assert done.code == 0, done.output
    assert done.output.count("translating 3 source(s) at each evaluation") == 1
    assert lines(whole) == lines(without)  # with dropout, so random states count
    written = samples(whole)
    assert [line["step"] for line in written] == [step for step in EVALUATIONS for _ in range(3)]
    assert len({line["language_pair"] for line in written[:3]}) == 3
    assert {line["language_pair"] for line in written} <= set(DIRECTIONS)
    assert [line["prompt"] for line in written[:3]] == [line["prompt"] for line in written[-3:]]

    # Killed after the evaluation of step 4, it goes on from step 3 and repeats that evaluation.
    run = start_ranks("--config", recipe, "--output_dir", killed, *arguments, ranks=2)
    wait_for_step(run, killed, 5)
    kill(run)
    done = run_recipe(recipe, killed, *arguments)
    assert done.code == 0 and "resumed from" in done.output, done.output
    assert samples(killed) == written and lines(killed) == lines(without)
