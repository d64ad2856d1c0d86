"""benchmarks/failures.py with real ranks: one is killed, and the restart's parts are told."""

from __future__ import annotations

from pathlib import Path

import failures
import pytest
from jobs import kills
from launch import ENVIRONMENT
from runs import small_recipe


def test_a_killed_rank_costs_a_restart_whose_parts_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill is due before there is any rank, so rank 1 is killed as soon as it runs."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    recipe = small_recipe(tmp_path, stage=0, train={"eval_every_steps": None})
    command = ["--config", recipe, "--model", tmp_path / "model", "--steps", "4", "--pause", "0"]
    command += ["--out", tmp_path / "failures.jsonl"]
    arguments, settings = failures.parse(list(map(str, command)))
    monkeypatch.setattr(failures, "schedule", lambda *_: iter([kills.Kill(0.0, "rank", 1)]))
    way = failures.Way(0.01, background=False, is_killed=True)
    line = failures.measured(failures.start(way, arguments, settings, tmp_path / "run"), 4)
    assert "error" not in line, line
    (kill,) = line["kills"]
    assert kill["victim"] == "rank 1" and None not in kill["parts"].values()
    assert line["saves"] == 4 and line["processes_left"] == 0
    assert line["unplanned_restarts"] == []
