"""Metrics in files and on the terminal; metrics.jsonl survives a resume."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from cpo_ds.run.monitor import Monitor, SilentMonitor
from cpo_ds.storage.metrics_file import cut_back_metrics


def monitor(folder: Path, first_step: int = 0, **options: Any) -> Monitor:
    defaults = {"tensorboard": False, "total_steps": 10}
    cut_back_metrics(folder, first_step)
    return Monitor(folder, first_step=first_step, **defaults | options)


def written(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    out = monitor(tmp_path)
    out.write({"step": 1, "loss": math.nan, "grad_norm": math.inf, "mfu": None, "pairs": 3})
    out.close()
    assert written(tmp_path) == [
        {"step": 1, "loss": None, "grad_norm": None, "mfu": None, "pairs": 3}
    ]


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    out = monitor(tmp_path)
    out.write({"step": 1, "loss": 0.5})
    assert written(tmp_path) == [{"step": 1, "loss": 0.5}]
    out.close()


def test_a_resumed_run_goes_on_after_its_checkpoint(tmp_path: Path) -> None:
    """Lines and evaluations of steps to be repeated are removed, and so is a torn line."""
    first = monitor(tmp_path)
    for step in range(1, 6):
        first.write({"step": step, "loss": 1.0})
        if step % 2 == 0:
            first.write({"step": step, "eval_loss": 2.0})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')  # killed while writing
    second = monitor(tmp_path, first_step=3)
    second.write({"step": 4, "loss": 0.25})
    second.close()
    assert written(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval_loss": 2.0},
        {"step": 3, "loss": 1.0},
        {"step": 4, "loss": 0.25},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_from_the_start_begins_a_new_file(tmp_path: Path) -> None:
    """Even the evaluation before the first step of the earlier run is gone."""
    for loss in (1.0, 2.0):
        out = monitor(tmp_path)
        out.write({"step": 0, "eval_loss": loss})
        out.write({"step": 1, "loss": loss})
        out.close()
    assert written(tmp_path) == [{"step": 0, "eval_loss": 2.0}, {"step": 1, "loss": 2.0}]
    monitor(tmp_path, first_step=1).close()  # a resumed run keeps both
    assert len(written(tmp_path)) == 2


def test_a_resumed_run_measures_again_what_followed_its_checkpoint(tmp_path: Path) -> None:
    """A step is saved before it is evaluated, so the evaluation may be missing, or come twice."""
    out = monitor(tmp_path)
    for line in ({"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 2.0}):
        out.write(line)
    out.close()
    again = monitor(tmp_path, first_step=2)
    again.write({"step": 2, "eval_loss": 2.0})
    again.close()
    assert [sorted(line) for line in written(tmp_path)] == [["loss", "step"], ["eval_loss", "step"]]


def test_garbage_in_the_file_does_not_stop_a_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'[]\n{"x": 1}\n\n{"step": 1, "loss": 1.0}\n{"step": 1, "\xff": 1}\n"step"\n{"step": "a"}\n'
    )
    monitor(tmp_path, first_step=1).close()
    assert written(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_ranks_other_than_the_first_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = SilentMonitor()
    out.write({"step": 1, "loss": 1.0})
    out.advance()
    out.show({})
    out.say("hello")
    out.close()
    out.sync()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_tensorboard_gets_train_and_eval_scalars(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = monitor(tmp_path, tensorboard=True)
    out.write({"step": 1, "epoch": 0.1, "loss": 0.5, "mfu": None})
    out.write({"step": 1, "eval_loss": 0.75})
    out.close()
    logged = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(logged.Tags()["scalars"]) == {"train/loss", "eval/eval_loss"}
    assert [(e.step, e.value) for e in logged.Scalars("eval/eval_loss")] == [(1, 0.75)]


def test_tensorboard_shows_a_repeated_step_once(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_step, loss in ((0, 0.5), (2, 0.25)):
        out = monitor(tmp_path, first_step=first_step, tensorboard=True)
        for step in range(first_step + 1, 5):
            out.write({"step": step, "loss": loss})
        out.close()
    logged = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in logged.Scalars("train/loss")] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.25),
        (4, 0.25),
    ]


LOGGED = {
    "step": 4, "loss": 0.51234, "reward_accuracy": 0.75, "pairs_per_second": 12.34,
    "tokens_per_second": 1234.5, "peak_memory_gib": 3.21, "step_seconds": 700.0,
    "learning_rate": 5e-3,
}  # fmt: skip


def test_without_a_terminal_a_logged_step_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    out = monitor(tmp_path)
    out.show(LOGGED)
    out.close()
    shown = capsys.readouterr().out
    assert shown.startswith("step 4/10  loss 0.5123  reward accuracy 0.750  12.3 pairs/s")
    assert shown.endswith("3.2 GiB  1:10:00 left\n")  # six steps of 700 seconds


def test_the_first_steps_of_a_start_foretell_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    out = monitor(tmp_path, first_step=5)
    for step, seconds in ((6, 90.0), (7, 4.0), (8, 5.0), (9, 6.0)):
        out.show(LOGGED | {"step": step, "step_seconds": seconds})
    out.close()
    ends = [line.rpartition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert ends == ["3.2 GiB", "3.2 GiB", "0:01:05 left", "0:00:05 left"]


def test_a_loss_that_rises_far_above_its_start_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = monitor(tmp_path, total_steps=99)
    for step, loss in enumerate([2.5, 2.4, 2.6, 2.2, 2.4] + [8.0] * 30, start=1):
        out.show(LOGGED | {"step": step, "loss": loss})
    out.close()
    shown = capsys.readouterr().out.splitlines()
    warnings = [number for number, line in enumerate(shown) if line.startswith("warning")]
    assert warnings == [17]  # after 5 + 12 steps
    assert "risen from 2.40 at the start to 8.00." in shown[17]
    assert "lower optim.learning_rate (now 0.005; try a third of it)" in shown[17]
