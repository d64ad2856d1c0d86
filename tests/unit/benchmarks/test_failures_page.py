"""The page, the chart and the arguments of benchmarks/failures.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import failures
import pytest
from jobs.supervised import Supervised
from pages import failures as page
from pages.results import read_lines, render_file

from cpo_ds.errors import UserError


def kill(victim: str, *seconds: float | None, lost: float, steps: int) -> dict[str, Any]:
    parts = dict(zip(page.PARTS, seconds, strict=True))
    return {"victim": victim, "at": 20.0, "parts": parts, "steps lost": steps, "lost": lost}


KILLS = [
    kill("rank 1", 1.5, 1.0, 8.0, 1.0, 2.5, None, lost=4.0, steps=1),  # cut off by the next one
    kill("host", 0.1, 10.0, 10.9, 1.0, 2.0, 3.0, lost=0.5, steps=0),
]


def line(**more: Any) -> dict[str, Any]:
    return {
        "benchmark": "failures", "model": "tiny", "ranks": 2, "steps": 9, "kill_seconds": 120.0,
        "victims": ["rank", "launcher", "host"], "pause": None, "settings": [], "threads": 1,
        "interval": 20.0, "background": False, "killed": True, "seconds": 130.0,
        "step_seconds": 2.5, "saves": 4, "save_seconds": 0.5, "kills": KILLS,
        "unplanned_restarts": [], "processes_left": 0, "device": "some CPU",
    } | more  # fmt: skip


UNDISTURBED = line(interval=None, killed=False, seconds=100.0, saves=1, save_seconds=0.4, kills=[])


def test_the_page_shows_times_parts_and_faults(tmp_path: Path) -> None:
    lines = [
        UNDISTURBED,
        line(),
        line(background=True, error="it ended with exit code 1; it printed\nmore"),
    ]
    lines[2]["unplanned_restarts"] = [1, 247]
    lines[2]["processes_left"] = 1
    file = tmp_path / "failures_tiny_cpu.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    render_file(file)
    text = file.with_suffix(".md").read_text()
    assert "# Time to 9 steps under failures: tiny, 2 ranks, some CPU" in text
    assert "| undisturbed | 0 | 1 | 0.40 | 2.50 | 100 | 1.00 |  |" in text
    assert "| every 20 s, foreground | 2 | 4 | 0.50 | 2.50 | 130 | 1.30 |" in text
    assert "| every 20 s, background | 2 | 4 | 0.50 | 2.50 | failed |  |  |" in text
    assert "| host | 2 | 0.1 | 10.0 | 10.9 | 1.0 | 2.0 | 3.0 | 27.0 |" in text
    assert "failed: it ended with exit code 1.**" in text
    assert "2 starts failed without a kill (codes 1, 247)" in text
    assert "1 processes were left at the end" in text
    assert file.with_name("failures_tiny_cpu_time.png").exists()


def test_the_parts_of_a_bar_add_up_to_the_run_s_time() -> None:
    parts = page.time_parts(line())
    assert sum(parts.values()) == pytest.approx(130.0)
    assert parts["notice"] == pytest.approx(1.5 + 1 + 0.1 + 10)
    assert (parts["lost work"], parts["saving"], parts["first step"]) == (4.5, 2.0, 3.0)
    assert page.time_parts(line(background=True))["saving"] == 0


def test_a_page_of_runs_without_kills(tmp_path: Path) -> None:
    page.render([UNDISTURBED], tmp_path / "x")
    assert "The parts of a restart" not in (tmp_path / "x.md").read_text()


def test_runs_are_added_to_those_of_an_earlier_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "start", lambda *_: Supervised(1, 9.0, [], "of the test"))
    out = tmp_path / "x.jsonl"
    command = ["--model", str(tmp_path), "--name", "tiny", "--steps", "9", "--out", str(out)]
    command += ["--intervals", "20", "--background", "20", "--add"]
    arguments, recipe = failures.parse(command)
    out.write_text(json.dumps(UNDISTURBED) + "\n" + json.dumps(line(error="gone")) + "\n")
    failures.run_all(arguments, recipe, tmp_path)
    lines = read_lines(out)
    assert lines[0] == UNDISTURBED  # as it was
    assert [(one["interval"], one["background"]) for one in lines[1:]] == [(20, False), (20, True)]
    assert all(
        one["error"] == "it ended with exit code 1; it printed last:\nof the test"
        for one in lines[1:]
    )
    arguments, recipe = failures.parse([*command, "--kill-minutes", "1"])
    with pytest.raises(UserError, match=r"another kill_seconds: 120\.0 and not 60\.0"):
        failures.run_all(arguments, recipe, tmp_path)
    assert read_lines(out) == lines


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--steps", "0"], "--steps"),
        (["--kill-minutes", "0"], "--kill-minutes"),
        (["--intervals", "nan"], "--intervals"),
        (["--background", "-1"], "--background"),
        (["--model", "nowhere"], "make_demo_model.py nowhere"),
    ],
)
def test_wrong_arguments_are_refused(words: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        failures.parse(["--model", str(tmp_path), *words])
