"""Runs a training command under scripts/supervise.sh, kills its processes by a schedule, and notes
the time of each line.

Times are those of this process's monotonic clock. Lines come from the script's own output, and from
rank 0's log in the run's folder, in which all starts append: it is looked at 20 times a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from measures.restarts import KILL, Event

from jobs.kills import Kill, kill_all, marked_processes, victims_of

_LOOK_SECONDS = 0.05
_MARK = "PYTHON_CPO_DS_RUN"  # supervise.sh sets it to HOST-PID-TIME, with its own PID
_MANY_RESTARTS = 10_000


@dataclass
class Supervised:
    """A supervised run that is over."""

    code: int | None  # None if the time was up
    seconds: float
    events: list[Event]
    output: str  # all that it printed
    left: list[int] = field(default_factory=list)  # processes that were left, and are killed


def run_supervised(
    command: Sequence[str],
    folder: Path,
    kills: Iterator[Kill],
    *,
    script: Path,
    pause: int | None,
    timeout: float,
    environment: dict[str, str],
) -> Supervised:
    """Runs `command`, whose output_dir is `folder`, to its end; no process stays behind."""
    pauses = [] if pause is None else ["--pause", str(pause)]
    whole = ["bash", str(script), "--restarts", str(_MANY_RESTARTS), *pauses, *command]
    began = time.monotonic()
    process = subprocess.Popen(
        whole,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    run = _Running(process, began, folder / "logs" / "rank_0.txt")
    mark = f"{_MARK}={os.uname().nodename}-{process.pid}-"
    try:
        code = run.follow(kills, mark, timeout)
        seconds = time.monotonic() - began
    finally:
        left = end_everything(process, mark)
    return Supervised(code, seconds, run.all_events(), run.output(), left)


class _Running:
    """A run that goes on, and the lines that it wrote so far."""

    def __init__(self, process: subprocess.Popen[str], began: float, log: Path) -> None:
        self._process, self._began, self._log = process, began, log
        self._events: list[Event] = []
        self._printed: list[str] = []
        self._position, self._unfinished = 0, ""
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()

    def follow(self, kills: Iterator[Kill], mark: str, timeout: float) -> int | None:
        """Kills by the schedule until the command ends; returns its exit code, None if too late."""
        kill = next(kills, None)
        while self._process.poll() is None:
            self._read_log()
            now = time.monotonic() - self._began
            if now > timeout:
                return None
            # A victim that does not run yet is killed as soon as it does.
            is_due = kill is not None and now >= kill.seconds
            if kill and is_due and (pids := victims_of(kill, marked_processes(mark))):
                self._note(f"{KILL}{kill}")
                kill_all(pids)
                kill = next(kills, None)
            time.sleep(_LOOK_SECONDS)
        self._reader.join(timeout=10)
        self._read_log()
        return self._process.returncode

    def all_events(self) -> list[Event]:
        """All lines so far, in the order of their times."""
        return sorted(self._events, key=lambda event: event.seconds)

    def output(self) -> str:
        """All that the command printed so far."""
        return "".join(self._printed)

    def _note(self, text: str) -> None:
        self._events.append(Event(time.monotonic() - self._began, text))

    def _read_output(self) -> None:
        """Keeps what is printed; lines of the ranks are taken from the log, so not from here."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._printed.append(line)
            if line.startswith("supervise.sh:"):
                self._note(line.rstrip("\n"))

    def _read_log(self) -> None:
        """Notes the lines that rank 0's log has got since the last call."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._position)
                added = file.read()
        except OSError:  # no start has come so far
            return
        self._position += len(added)
        *lines, self._unfinished = (self._unfinished + added.decode(errors="replace")).split("\n")
        for line in lines:
            self._note(line)


def end_everything(process: subprocess.Popen[str], mark: str) -> list[int]:
    """Ends supervise.sh and every process of its run; returns those that it had left behind."""
    was_over = process.poll() is not None
    if not was_over:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    left = [one.pid for one in marked_processes(mark)]
    while pids := [one.pid for one in marked_processes(mark)]:
        kill_all(pids)
        time.sleep(_LOOK_SECONDS)
    return left if was_over else []
