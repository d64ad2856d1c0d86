"""benchmarks/failures.py: the schedule of kills, the parts of restarts, and formulas."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import psutil
import pytest
from jobs.kills import Kill, Process, kill_all, marked_processes, schedule, victims_of
from jobs.supervised import Supervised, run_supervised
from measures.interval import daly_interval, expected_factor, young_interval
from measures.restarts import (
    KILL,
    Event,
    kill_report,
    save_seconds,
    step_gaps,
    unplanned_restarts,
)
from repository import ROOT

# A start, two steps and a checkpoint; rank 1 is killed in the third step; the next start goes on
# after step 2 and is killed before its first step; the one after it trains.
RUN = [
    (10.0, "--- rank 0 on host h, process 1, 2026-01-01 00:00:00 +0000"),
    (12.0, "training pairs: 221"),
    (15.0, "training a LoRA adapter with cpo in float32 on 2 rank(s) (cpu), ZeRO-3"),
    (18.0, "step 1/9  loss 1.0"),
    (20.5, "step 2/9  loss 1.0"),
    (21.0, "saved runs/x/checkpoints/step-00000002 (11.7 MiB, 0.5 s)"),
    (23.0, "step 3/9  loss 1.0"),
    (24.5, KILL + "rank 1"),
    (26.0, "supervise.sh: exit code 247; restart 1 of 9 in 1 s."),
    (35.0, "--- rank 0 on host h, process 2, 2026-01-01 00:00:25 +0000"),
    (36.0, "training pairs: 221"),
    (38.5, "training a LoRA adapter with cpo in float32 on 2 rank(s) (cpu), ZeRO-3"),
    (38.5, "resumed from runs/x/checkpoints/step-00000002 at step 2 of 9"),
    (39.0, KILL + "host"),
    (39.1, "supervise.sh: exit code 137; restart 2 of 9 in 10 s."),
    (60.0, "--- rank 0 on host h, process 3, 2026-01-01 00:00:50 +0000"),
    (61.0, "training pairs: 221"),
    (63.0, "training a LoRA adapter with cpo in float32 on 2 rank(s) (cpu), ZeRO-3"),
    (63.0, "resumed from runs/x/checkpoints/step-00000002 at step 2 of 9"),
    (66.0, "step 3/9  loss 1.0"),
    (68.5, "step 4/9  loss 1.0"),
]
EVENTS = [Event(*event) for event in RUN]


def test_kills_come_at_fixed_times_and_victims_and_ranks_take_turns() -> None:
    kills = list(islice(schedule(120, 2), 7))
    assert [kill.seconds for kill in kills] == [120, 240, 360, 480, 600, 720, 840]
    names = ["rank 1", "launcher", "host", "rank 0", "launcher", "host", "rank 1"]
    assert list(map(str, kills)) == names
    assert list(map(str, islice(schedule(1, 3, ("rank",)), 4))) == ["rank 2", "rank 1", "rank 0",
                                                                    "rank 2"]  # fmt: skip


def test_victims_are_found_by_their_ranks_and_parents() -> None:
    runner, launcher = Process(10, 1, None), Process(11, 10, None)
    ranks = [Process(20, 11, 0), Process(21, 11, 1)]
    worker = Process(30, 21, 1)  # inherits its rank's environment
    everything = [runner, launcher, *ranks, worker]
    assert victims_of(Kill(0, "rank", 1), everything) == [21]
    assert victims_of(Kill(0, "launcher"), everything) == [11]
    assert victims_of(Kill(0, "host"), everything) == [10, 11, 20, 21, 30]
    # Nothing of the kind runs: in a pause, or before the ranks are started.
    assert victims_of(Kill(0, "host"), []) == []
    assert victims_of(Kill(0, "rank", 1), [runner, launcher]) == []
    orphans = [Process(20, 1, 0), Process(21, 1, 1)]  # init is no launcher
    assert victims_of(Kill(0, "launcher"), orphans) == []


def test_processes_of_a_run_are_found_by_its_mark_and_ended() -> None:
    mark = f"PYTHON_CPO_DS_RUN=of-this-test-{os.getpid()}"
    name, _, value = mark.partition("=")
    environment = os.environ | {name: f"{value}-1", "RANK": "3"}
    sleeping = [sys.executable, "-c", "input()"]
    with subprocess.Popen(sleeping, env=environment, stdin=subprocess.PIPE) as process:
        while not marked_processes(mark):  # it has our environment until its exec
            pass
        assert marked_processes(mark) == [Process(process.pid, os.getpid(), 3)]
        kill_all([process.pid])
        assert process.wait() == -signal.SIGKILL
        assert marked_processes(mark) == []
        kill_all([process.pid])  # it is gone: no error


def supervised(command: str, folder: Path, kills: list[Kill], timeout: float) -> Supervised:
    return run_supervised(
        ["bash", "-c", command], folder, iter(kills), script=ROOT / "scripts" / "supervise.sh",
        pause=0, timeout=timeout, environment=dict(os.environ),
    )  # fmt: skip


def runs(file: Path) -> bool:
    """Whether the process whose number is in a file runs; nobody may have waited for it yet."""
    try:
        return psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_supervised_command_is_killed_started_again_and_its_lines_are_timed(
    tmp_path: Path,
) -> None:
    """The second start finds a file of the first and goes on to its end."""
    log = tmp_path / "logs" / "rank_0.txt"
    command = f"""mkdir -p {log.parent}; echo '--- rank 0 on host' >> {log}
        [ -e {tmp_path}/again ] && exit 0; touch {tmp_path}/again; sleep 100 & wait"""
    done = supervised(command, tmp_path, [Kill(0.5, "host")], timeout=30)
    assert (done.code, done.left) == (0, []), done.output
    kinds = [event.text.partition(" ")[0] for event in done.events]
    assert kinds == ["---", "failures.py:", "supervise.sh:", "---"]
    (report,) = kill_report(done.events)
    assert report["victim"] == "host" and report["at"] >= 0.5
    assert report["parts"]["pause"] == 0 and report["parts"]["launch"] is not None
    assert unplanned_restarts(done.events) == []


def test_a_run_that_takes_too_long_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    # A process that left the command's session is ended too, by its environment.
    command = f"setsid sleep 100 & echo $! > {tmp_path}/pid; sleep 100"
    done = supervised(command, tmp_path, [], timeout=1)
    assert done.code is None and done.left == []
    assert not runs(tmp_path / "pid")


def test_a_process_that_stays_behind_is_reported_and_ended(tmp_path: Path) -> None:
    done = supervised(f"setsid sleep 100 >&- 2>&- & echo $! > {tmp_path}/pid", tmp_path, [], 30)
    assert (done.code, done.left) == (0, [int((tmp_path / "pid").read_text())])
    assert not runs(tmp_path / "pid")


def test_parts_of_restarts_and_lost_work_by_hand() -> None:
    first, second = kill_report(EVENTS)
    assert first == {
        "victim": "rank 1",
        "at": 24.5,
        "parts": {"notice": 1.5, "pause": 1.0, "launch": 8.0, "read": 1.0, "load": 2.5,
                  "first step": None},
        "steps lost": 1,  # the third; a part of the fourth is lost too
        "lost": 4.0,  # since the end of step 2
    }  # fmt: skip
    assert second["victim"] == "host" and second["steps lost"] == 0
    assert second["parts"] == {"notice": 0.1, "pause": 10.0, "launch": 10.9, "read": 1.0,
                               "load": 2.0, "first step": 3.0}  # fmt: skip
    assert second["lost"] == 0.5  # since its training began
    assert kill_report(EVENTS[:7]) == []
    unseen = kill_report([*EVENTS[:7], Event(25.0, KILL + "launcher")])
    assert set(unseen[0]["parts"].values()) == {None} and unseen[0]["lost"] is None


def test_steps_that_are_saved_after_a_kill_are_not_lost() -> None:
    """Ranks whose launcher is killed finish their step, save and end."""
    saved = [
        *EVENTS[:7],
        Event(24.5, KILL + "launcher"),
        Event(25.5, "step 4/9  loss 1.0"),
        Event(26.0, "saved runs/x/checkpoints/step-00000004 (11.7 MiB, 0.5 s)"),
        Event(27.0, "supervise.sh: exit code 5; restart 1 of 9 in 1 s."),
        Event(36.0, "--- rank 0 on host h"),
        Event(37.0, "training pairs: 221"),
        Event(38.0, "training all parameters with cpo"),
        Event(38.0, "resumed from runs/x/checkpoints/step-00000004 at step 4 of 9"),
    ]
    (report,) = kill_report(saved)
    assert report["parts"]["notice"] == 2.5
    assert (report["steps lost"], report["lost"]) == (0, 0.0)


def test_a_run_without_a_checkpoint_loses_all_of_it() -> None:
    events = [event for event in EVENTS if not event.text.startswith(("saved", "resumed"))]
    assert kill_report(events)[0]["lost"] == 9.5  # since its training began, at 15.0
    assert kill_report(events)[0]["steps lost"] == 3


def test_restarts_without_a_kill_are_faults_of_the_run() -> None:
    assert unplanned_restarts(EVENTS) == []
    own = Event(70.0, "supervise.sh: exit code 1; restart 3 of 9 in 10 s.")
    assert unplanned_restarts([*EVENTS, own]) == [1]


def test_saves_and_steps_are_read_from_the_lines() -> None:
    assert save_seconds(EVENTS) == [0.5]
    assert step_gaps(EVENTS) == [2.5, 2.5]  # not those with a save or a restart between


# Mean time between failures, save and best interval, in minutes: figures 3 to 5 of Daly's paper.
@pytest.mark.parametrize(("failure", "interval"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_daly_s_interval_is_that_of_his_paper(failure: float, interval: float) -> None:
    assert daly_interval(5, failure) == pytest.approx(interval, abs=0.5 if interval > 10 else 0.05)


def test_formulas_by_hand() -> None:
    assert young_interval(10, 3600) == pytest.approx(268.328, abs=1e-3)  # the root of 72,000
    # 268.328 x (1 + 0.037268 / 3 + 0.0013889 / 9) - 10
    assert daly_interval(10, 3600) == pytest.approx(261.703, abs=1e-3)
    assert daly_interval(100, 50) == 50  # a save as long as two times between failures
    # 3600 / 260 x e^(60 / 3600) x (e^(270 / 3600) - 1)
    assert expected_factor(260, 10, 3600, 60) == pytest.approx(1.09657, abs=1e-4)


@pytest.mark.parametrize("failure", [60.0, 3600.0, 86400.0])
@pytest.mark.parametrize("save", [0.5, 5.0, 20.0])
def test_daly_s_interval_makes_the_expected_time_shortest(save: float, failure: float) -> None:
    best = daly_interval(save, failure)
    times = [expected_factor(best * share, save, failure, 30) for share in (0.7, 1.0, 1.4)]
    assert times[1] == min(times)


def test_the_documented_intervals_are_daly_s() -> None:
    """The table in docs/checkpoints.md: hours between failures, and seconds of a save."""
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    table = text.partition("| a fault every |")[2].partition("\n\n")[0].splitlines()
    saves = [float(cell.split()[0]) for cell in table[0].split("|") if cell.strip()]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    hours = {"hour": 1, "6 hours": 6, "day": 24, "week": 168}
    assert [name for name, *_ in rows] == list(hours) and len(saves) == 4
    for name, *minutes in rows:
        best = [daly_interval(save, 3600 * hours[name]) / 60 for save in saves]
        assert minutes == [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in best]
