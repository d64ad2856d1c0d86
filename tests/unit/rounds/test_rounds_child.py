"""Stages as processes: their exit codes, their output, their times, and requests to stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from cpo_ds.rounds import child
from cpo_ds.rounds.child import Runner, StageFailed, duration
from cpo_ds.rounds.layout import Layout
from cpo_ds.rounds.stages import Stage


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A folder of rounds whose stages are shell scripts."""
    monkeypatch.setattr(child, "command_of", lambda stage: ["sh", "-c", *stage.argv])
    return Layout(tmp_path)


def stage(layout: Layout, script: str, name: str = "score") -> Stage:
    return Stage(1, name, (script,), (layout.folder / "done",))


def failure(layout: Layout, script: str) -> int:
    with pytest.raises(StageFailed) as failed:
        Runner(layout.log, layout.times).run(stage(layout, script))
    return failed.value.code


def test_a_stage_is_carried_out_once(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    done = stage(layout, f"echo its output; touch {layout.folder / 'done'}")
    for _ in range(2):
        Runner(layout.log, layout.times).run(done)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("round 1, score ... ") and first.endswith(" s")
    assert second == "round 1, score: done before"
    assert layout.log(1, "score").read_text() == "its output\n"
    (line,) = map(json.loads, layout.times.read_text().splitlines())
    assert (line["round"], line["stage"]) == (1, "score") and line["seconds"] >= 0


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("echo no room; exit 2", 2, "ended with exit code 2"),
        ("exit 3", 3, "exit code 3"),
        ("exit 4", 4, "stopped on request or by train.max_hours"),
        ("exit 5", 5, "exit code 5"),
        ("kill -9 $$", 5, "ended by signal 9"),
        ("exit 247", 5, "ended by signal 9"),  # as launchers tell it
        ("exit 0", 1, "ended without "),
    ],
)
def test_exit_codes_are_passed_on(
    layout: Layout, capsys: pytest.CaptureFixture[str], script: str, code: int, says: str
) -> None:
    layout.log(1, "score").parent.mkdir()
    layout.log(1, "score").write_text("of an earlier start\n")
    assert failure(layout, script) == code
    said = capsys.readouterr().err
    assert says in said and f"All of its output: {layout.log(1, 'score')}" in said
    assert ("  | no room" in said) == ("no room" in script) and "earlier" not in said
    assert not layout.times.exists()


@pytest.mark.parametrize("name", ["score", "train"])
def test_a_request_to_stop_reaches_the_stage(
    layout: Layout, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A second one ends a stage that does not heed the first."""
    stubborn = "trap '' TERM; " if name == "score" else "trap 'exit 4' TERM; "
    script = f"{stubborn} touch {layout.folder / 'begun'}; while true; do sleep 0.05; done"
    runner = Runner(layout.log, layout.times)

    def ask() -> None:
        while not (layout.folder / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        if name == "score":
            time.sleep(3.2)  # what comes sooner is the same request
            os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with runner.listening(), pytest.raises(StageFailed) as failed:
        runner.run(stage(layout, script, name))
    asking.join()
    assert failed.value.code == 4
    said = capsys.readouterr().err
    assert "SIGTERM: the stage " + ("saves" if name == "train" else "ends") in said
    assert "stopped: asked to by SIGTERM; what is done is kept" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_no_stage_begins_after_a_request(layout: Layout) -> None:
    runner = Runner(layout.log, layout.times)
    with runner.listening():
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(StageFailed) as failed:
            runner.run(stage(layout, f"touch {layout.folder / 'done'}"))
    assert failed.value.code == 4 and not (layout.folder / "done").exists()


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 59.9, 60, 3725)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "1 h 02 min",
    ]  # fmt: skip
