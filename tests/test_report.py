"""The report of a run: before and after, and a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cpo_ds.run import report


def write_run(folder: Path) -> None:
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


def test_it_prints_before_and_after_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "reward accuracy         0.2500 -> 0.7500" in printed
    assert "reward margin           0.1250 -> 0.3750" in printed
    assert re.search(r"en-de \(4\) +0\.250 -> 0\.750", printed)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "there is no" in capsys.readouterr().err
