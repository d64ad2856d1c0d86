"""What a run tells: the metrics of a step, throughput, and the file that survives a resume."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cpo_ds.config import LossConfig
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.run.monitor import (
    COLUMNS,
    Monitor,
    Stopwatch,
    cut_back_metrics,
    pair_columns,
    peak_memory_gib,
    peak_tflops,
    summarize,
)
from cpo_ds.schema import PairLogps, StepTotals

TOTALS = StepTotals(pairs=4, chosen_tokens=10, scored_tokens=25, unique_tokens=70, padded_tokens=99)
SUMS = dict(zip(COLUMNS, (2.0, 30.0, 3.0, 6.0, -30.0, -50.0), strict=True))


def test_summarize_by_hand() -> None:
    """preference 2 / 4, nll 30 / 10 tokens, 3 of 4 right, margin 6 / 4, log-probs over 4 pairs."""
    assert summarize(list(SUMS.values()), TOTALS, LossConfig(alpha=0.5)) == {
        "loss": 0.5 + 0.5 * 3.0,
        "preference_loss": 0.5,
        "nll_loss": 3.0,
        "reward_accuracy": 0.75,
        "reward_margin": 1.5,
        "logp_chosen": -7.5,
        "logp_rejected": -12.5,
    }
    by_pair = summarize(list(SUMS.values()), TOTALS, LossConfig(nll_reduction="pair"))
    assert (by_pair["nll_loss"], by_pair["loss"]) == (7.5, 8.0)
    simpo = summarize(list(SUMS.values()), TOTALS, LossConfig(name="simpo"))
    assert (simpo["nll_loss"], simpo["loss"]) == (3.0, 0.5)  # told, but not part of the loss


@pytest.mark.parametrize("name", ["cpo", "simpo", "cpo-simpo", "arpo", "ipo", "hinge", "sft"])
def test_the_loss_that_is_logged_is_the_loss_that_is_minimized(name: str) -> None:
    loss = LossConfig(name=name)
    logps = PairLogps(
        torch.tensor([-6.0, -9.0, -3.0]),
        torch.tensor([-16.0, -8.0, -3.0]),
        torch.tensor([3.0, 4.0, 2.0]),
        torch.tensor([4.0, 4.0, 2.0]),
    )
    totals = StepTotals(3, 9, 19, 30, 40)
    terms = pair_terms(logps, loss)
    columns = pair_columns(terms, logps)
    assert columns.shape == (3, len(COLUMNS)) and columns.dtype == torch.float64
    logged = summarize(columns.sum(0).tolist(), totals, loss)
    assert logged["loss"] == pytest.approx(step_share(terms, totals, loss).item(), rel=1e-6)
    assert logged["reward_accuracy"] == pytest.approx(1 / 3)  # a tie is not right
    assert logged["logp_chosen"] == pytest.approx(-6.0)


def test_columns_carry_no_gradient() -> None:
    leaf = torch.tensor([-6.0], requires_grad=True)
    logps = PairLogps(leaf, leaf * 2, torch.tensor([3.0]), torch.tensor([3.0]))
    assert not pair_columns(pair_terms(logps, LossConfig()), logps).requires_grad


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_of_known_devices(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert peak_tflops(torch.device("cuda")) == peak
    assert peak_tflops(torch.device("cpu")) is None


def test_memory_of_this_process_is_counted_in_gib() -> None:
    assert 0.05 < peak_memory_gib(torch.device("cpu")) < 100


def test_stopwatch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 103.0, 108.0, 111.0, 111.0 + 2.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()  # at 100
    watch.count(TOTALS, 3e12)
    watch.go_on(watch.pause())  # an evaluation from 103 to 108
    watch.count(TOTALS, 3e12)
    rates = watch.read(world_size=2, peak=10.0)  # at 111: 11 seconds, 5 of which do not count
    assert rates == {
        "step_seconds": 3.0,
        "pairs_per_second": pytest.approx(8 / 6),
        "tokens_per_second": pytest.approx(140 / 6),
        "model_tflops": pytest.approx(6 / 6 / 2),  # a device's share of 6 TFLOP in 6 seconds
        "mfu": pytest.approx(0.05),
    }
    watch.count(TOTALS, 0.0)
    again = watch.read(world_size=1, peak=None)
    assert again["pairs_per_second"] == 2.0 and again["mfu"] is None


def monitor(folder: Path, first_step: int = 0, **options: Any) -> Monitor:
    defaults = {"is_writer": True, "tensorboard": False, "total_steps": 10}
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
    """Lines of steps to be repeated go, evaluations too, and so does a line that was cut off."""
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
    """Also without the evaluation before the first step of the run before."""
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = monitor(tmp_path / "x", is_writer=False, tensorboard=True)
    out.write({"step": 1, "loss": 1.0})
    out.advance()
    out.show({})
    out.say("hello")
    out.close()
    assert not (tmp_path / "x").exists()
    assert capsys.readouterr().out == ""


def test_tensorboard_gets_train_and_eval_scalars(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = monitor(tmp_path, tensorboard=True)
    out.write({"step": 1, "epoch": 0.1, "loss": 0.5, "mfu": None})
    out.write({"step": 1, "eval_loss": 0.75})
    out.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "eval/eval_loss"}
    assert [(e.step, e.value) for e in found.Scalars("eval/eval_loss")] == [(1, 0.75)]


def test_tensorboard_shows_a_repeated_step_once(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_step, loss in ((0, 0.5), (2, 0.25)):
        out = monitor(tmp_path, first_step=first_step, tensorboard=True)
        for step in range(first_step + 1, 5):
            out.write({"step": step, "loss": loss})
        out.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.25),
        (4, 0.25),
    ]


def test_without_a_terminal_a_logged_step_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    out = monitor(tmp_path)
    line = {"step": 4, "loss": 0.51234, "reward_accuracy": 0.75, "pairs_per_second": 12.34}
    out.show(line | {"tokens_per_second": 1234.5, "peak_memory_gib": 3.21, "step_seconds": 700.0})
    out.close()
    shown = capsys.readouterr().out
    assert shown.startswith("step 4/10  loss 0.5123  reward accuracy 0.750  12.3 pairs/s")
    assert shown.endswith("3.2 GiB  1:10:00 left\n")  # six steps of 700 seconds
