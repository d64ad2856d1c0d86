"""Trackers get the lines of metrics.jsonl, and none of their failures reaches the run."""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from recipes import MINIMAL

from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.run import trackers
from cpo_ds.run.monitor import Monitor
from cpo_ds.run.tracker_kinds import check_trackers, flat_settings
from cpo_ds.run.trackers import TrackerThread, open_trackers, tracked_numbers

EVALUATION = {
    "step": 0,
    "epoch": 0.0,
    "eval_loss": 2.0,
    "eval_directions": {"en-de": {"loss": 3.0}},
}
STEPS = [{"step": n, "loss": 1.0 / n, "grad_norm": float("nan"), "mfu": None} for n in (1, 2, 3)]
EXPECTED = {  # (step, name) -> value
    **{(n, "loss"): 1.0 / n for n in (1, 2, 3)},
    **{(0, "epoch"): 0.0, (0, "eval_loss"): 2.0, (0, "eval_directions/en-de/loss"): 3.0},
}
Numbers = dict[tuple[int, str], float]


class Tracked:
    """A tracker's run in memory, whose writes fail for steps in `bad`."""

    address = "in memory"

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.bad, self.steps, self.complete, self.identity = bad, [], None, {"id": "1"}

    def write(self, step: int, numbers: dict[str, float]) -> None:
        if step in self.bad:
            raise ConnectionError(f"no answer\nfor step {step}")
        self.steps.append(step)

    def close(self, *, complete: bool) -> None:
        self.complete = complete


def monitor(folder: Path, *tracked: TrackerThread) -> Monitor:
    return Monitor(folder, tensorboard=False, first_step=0, total_steps=3, trackers=tracked)


def test_numbers_have_the_names_of_the_metrics_file() -> None:
    assert tracked_numbers(EVALUATION | {"note": "text"}) == {
        "epoch": 0.0, "eval_loss": 2.0, "eval_directions/en-de/loss": 3.0,
    }  # fmt: skip
    assert tracked_numbers(STEPS[0]) == {"loss": 1.0}


def test_settings_have_the_names_and_texts_of_the_command_line() -> None:
    values = dict(flat_settings({"loss": {"beta": 0.1}, "lora": None, "a": {"b": True, "c": {}}}))
    assert values == {"loss.beta": "0.1", "lora": "none", "a.b": "true", "a.c": "{}"}


def test_a_tracker_gets_each_line_and_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps, complete in ((STEPS, True), (STEPS[:2], False)):
        run = Tracked()
        out = monitor(tmp_path, TrackerThread("wandb", lambda run=run: run))
        for line in steps:
            out.write(line)
        out.close()
        assert run.steps == [line["step"] for line in steps] and run.complete is complete
    assert capsys.readouterr().out == "wandb: in memory\n" * 2


def test_a_failing_tracker_is_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Tracked(bad=(1, 3))
    out = monitor(tmp_path, TrackerThread("mlflow", lambda: run))
    for line in STEPS:
        out.write(line)
    out.close()
    assert run.steps == [2] and run.complete is True
    (warning,) = [t for t in capsys.readouterr().out.splitlines() if t.startswith("warning")]
    assert warning == (
        "warning: mlflow: no answer for step 1. The run goes on; metrics may be missing there, "
        "metrics.jsonl has all."
    )
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_does_not_answer_holds_nothing_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "_SECONDS_TO_END", 0.1)
    answer = threading.Event()
    out = monitor(tmp_path, TrackerThread("wandb", lambda: answer.wait() and Tracked()))
    out.write(STEPS[0])
    out.close()
    answer.set()
    assert capsys.readouterr().out.startswith("warning: wandb: it does not answer. The run goes on")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_tracker_is_refused_by_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"{name} .*is not installed: pip install {name}, or take"):
        check_trackers(["tensorboard", name])
    # A folder of this name, such as the one that wandb makes in the working directory.
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} .*is not installed"):
        check_trackers([name])
    # A library that does not work.
    monkeypatch.delitem(sys.modules, name)
    for text, part in (
        ("import no_such_part", "needs no_such_part"),
        ("1 / 0", "division by zero"),
    ):
        (tmp_path / name / "__init__.py").write_text(text)
        with pytest.raises(UserError, match=part):
            check_trackers([name])


def test_names_of_trackers_are_checked() -> None:
    assert parse_config(MINIMAL | {"logging": {"trackers": "wandb"}}, "r").logging.trackers == [
        "wandb"
    ]
    for settings, part in (
        ({"trackers": ["weights"]}, "must be one of tensorboard, wandb, mlflow, trackio"),
        ({"trackers": ["tensorboard"], "tensorboard": False}, "logging.tensorboard is false"),
    ):
        with pytest.raises(UserError, match=part):
            parse_config(MINIMAL | {"logging": settings}, "r")


# With the libraries themselves, offline.


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("HOME", str(tmp_path))
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # else it keeps the environment of the test before
    return tmp_path


def wandb_numbers(folder: Path) -> tuple[Numbers, dict[str, Any]]:
    """Numbers and settings in the files of a run offline, which must all have one id."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at a program's end; its own process may still be writing
    numbers: Numbers = {}
    settings: dict[str, Any] = {}
    files = sorted((folder / "x" / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1 and len(files) == 2
    for data in (data for file in files for data in records(file.read_bytes())):
        record = Record.FromString(data)
        line = {
            i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item
        }
        numbers |= {(line["step"], k): v for k, v in line.items() if k[0] != "_" and k != "step"}
        changes = [*record.config.update, *record.run.config.update]
        settings |= {i.key: json.loads(i.value_json) for i in changes}
    return numbers, settings


def records(content: bytes) -> Iterator[bytes]:
    """The records of W&B's file, in the form of LevelDB's logs."""
    position, whole = 7, b""  # after the file's own header
    while position + 7 <= len(content):
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]  # 1: whole, 2 to 4: first, middle and last part
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        if kind in (1, 4):
            yield whole
            whole = b""


def mlflow_numbers(folder: Path) -> tuple[Numbers, dict[str, Any]]:
    import mlflow

    note = json.loads((folder / "x" / "trackers" / "mlflow.json").read_text())
    client = mlflow.MlflowClient(note["store"])
    (run,) = client.search_runs([client.get_experiment_by_name("cpo_ds").experiment_id])
    assert run.info.run_id == note["run"] and run.info.status == "FINISHED"
    metrics = [m for key in run.data.metrics for m in client.get_metric_history(note["run"], key)]
    return {(m.step, m.key): m.value for m in metrics}, run.data.params | run.data.tags


def trackio_numbers(folder: Path) -> tuple[Numbers, dict[str, Any]]:
    import trackio.utils

    database = sqlite3.connect(trackio.utils.TRACKIO_DIR / "cpo_ds.db")
    name = json.loads((folder / "x" / "trackers" / "trackio.json").read_text())["name"]
    lines = database.execute("select step, metrics from metrics where run_name = ?", [name])
    numbers = {(step, k): v for step, text in lines for k, v in json.loads(text).items()}
    ids = set(database.execute("select run_id from metrics where run_name = ?", [name]))
    (text,) = database.execute("select config from configs where run_name = ?", [name]).fetchone()
    assert len(ids) == 1
    return numbers, json.loads(text)


REAL = {"wandb": wandb_numbers, "mlflow": mlflow_numbers, "trackio": trackio_numbers}


def start(
    folder: Path, name: str, lines: list[dict[str, Any]], *, resumes: bool, beta: float
) -> str:
    """One start of a run of three steps with a tracker; returns the tracker's messages."""
    own = {"logging": {"trackers": [name]}, "loss": {"beta": beta}, "output_dir": str(folder / "x")}
    (folder / "x").mkdir(exist_ok=True)
    (tracker,) = open_trackers(parse_config(MINIMAL | own, "test"), resumes=resumes)
    for line in lines:
        tracker.write(line)
    trackers.end_trackers([tracker], complete=lines[-1]["step"] == 3)
    return "\n".join(tracker.messages())


@pytest.mark.parametrize("name", REAL)
def test_a_resume_goes_on_with_the_run_of_the_tracker(offline: Path, name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed; see docs/trackers.md")
    check_trackers([name])
    first = start(offline, name, [EVALUATION, *STEPS[:2]], resumes=False, beta=0.1)
    note = (offline / "x" / "trackers" / f"{name}.json").read_text()
    time.sleep(1.1)  # W&B names a start's folder by the second, and real starts are further apart
    second = start(offline, name, [STEPS[1], STEPS[2]], resumes=True, beta=0.2)
    assert (offline / "x" / "trackers" / f"{name}.json").read_text() == note
    for messages in (first, second):
        assert messages.startswith(f"{name}: ") and "\n" not in messages, messages
    numbers, settings = REAL[name](offline)
    assert numbers == EXPECTED
    beta = settings["loss.beta"] if name == "mlflow" else settings["loss"]["beta"]
    assert float(beta) == 0.2


def test_mlflow_takes_a_folder_as_its_store(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed; see docs/trackers.md")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{offline}/mlruns")
    start(offline, "mlflow", [EVALUATION, *STEPS], resumes=False, beta=0.1)
    assert mlflow_numbers(offline)[0] == EXPECTED


@pytest.mark.parametrize(
    ("name", "variables", "part"),
    [
        ("wandb", {"WANDB_MODE": "online"}, "wandb login"),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}, "cannot be opened"),
        ("trackio", {"TRACKIO_SERVER_URL": "http://127.0.0.1:9"}, "write token"),
    ],
)
def test_what_libraries_refuse_is_one_warning(
    offline: Path, monkeypatch: pytest.MonkeyPatch, name: str, variables: dict[str, str], part: str
) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed; see docs/trackers.md")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    messages = start(offline, name, STEPS, resumes=False, beta=0.1)
    assert messages.startswith(f"warning: {name}: ") and "\n" not in messages, messages
    assert part in messages
