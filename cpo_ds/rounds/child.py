"""Carries out stages as processes of their own, and passes requests to stop on to them.

A stage's memory is free when it ends, and a stage may replace itself by a Python of another
environment, as metrics by COMET do.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from cpo_ds.errors import EXIT_RANK_LOST, EXIT_STOPPED, UserError
from cpo_ds.ranks.stopping import SIGNALS, is_same_request, name_of, takes_interrupts
from cpo_ds.rounds.stages import Stage

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_LAST_LINES = 12  # of a failed stage's output, to show


class StageFailed(Exception):
    """A stage ended with an exit code other than 0, or was stopped; it has been told."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Runner:
    """Carries out one stage after the other; `requested` holds a signal that asked for a stop."""

    def __init__(self, log_of: Callable[[int, str], Path], times: Path) -> None:
        self._log_of, self._times = log_of, times
        self._process: subprocess.Popen[bytes] | None = None
        self._stage: Stage | None = None
        self._requested: int | None = None
        self._requested_at = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes Ctrl-C, SIGTERM and SIGUSR1 inside the block."""
        numbers = [n for n in SIGNALS if n != signal.SIGINT or takes_interrupts()]
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, stage: Stage) -> None:
        """Carries out a stage unless it is complete, and prints a line on it.

        Raises `StageFailed` if it fails or if a stop was requested, and `UserError` if it cannot be
        started.
        """
        self.check_request()
        if stage.is_complete():
            print(f"{stage}: done before", flush=True)
            return
        print(f"{stage} ... ", end="", flush=True)
        log = self._log_of(stage.round, stage.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with log.open("ab") as file:
            begin = file.tell()
            code = self._run(stage, file.fileno())
        seconds = time.monotonic() - started
        if code == 0 and stage.is_complete():
            print(f"{duration(seconds)}", flush=True)
            self._keep_time(stage, seconds)
            return
        print(f"ended after {duration(seconds)}", flush=True)
        self.check_request()
        raise StageFailed(_told(stage, code, log, begin))

    def check_request(self) -> None:
        """Raises `StageFailed` if a stop was requested."""
        if self._requested is not None:
            print(
                f"\ncpo_ds: stopped: asked to by {name_of(self._requested)}; what is done is kept, "
                "and the same command goes on.",
                file=sys.stderr,
                flush=True,
            )
            raise StageFailed(EXIT_STOPPED)

    def _run(self, stage: Stage, output: int) -> int:
        """Runs the command in a session of its own, so that Ctrl-C reaches this process alone."""
        command = command_of(stage)
        self._stage = stage
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
        except OSError as error:
            raise UserError(f"{command[0]} cannot be started: {error.strerror}.") from None
        if self._requested is not None:  # a signal came meanwhile
            self._pass_on(self._requested)
        try:
            return self._process.wait()
        finally:
            self._end_rest()
            self._process = None

    def _ask(self, number: int, _: FrameType | None) -> None:
        """Passes a request to stop on; a second one ends the stage at once."""
        now = time.monotonic()
        if self._requested is not None:
            if not is_same_request(number, now - self._requested_at):
                self._pass_on(number, at_once=True)
            return
        self._requested, self._requested_at = number, now
        saves = self._stage is not None and self._stage.saves
        how = "saves and ends" if saves else "ends; its finished work is kept"
        print(
            f"\ncpo_ds: {name_of(number)}: the stage {how}. A second one ends it now.",
            file=sys.stderr,
            flush=True,
        )
        self._pass_on(number)

    def _pass_on(self, number: int, *, at_once: bool = False) -> None:
        process, stage = self._process, self._stage
        if process is None or stage is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if stage.saves:  # it ends its own ranks, also at once if asked a second time
                os.kill(process.pid, number)
            else:
                os.killpg(process.pid, signal.SIGKILL if at_once else signal.SIGTERM)

    def _end_rest(self) -> None:
        """Ends what a stage's process may have left in its session."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _keep_time(self, stage: Stage, seconds: float) -> None:
        line = {"round": stage.round, "stage": stage.name, "seconds": round(seconds, 2)}
        with contextlib.suppress(OSError), self._times.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def command_of(stage: Stage) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "-m", "cpo_ds.cli", *stage.argv]


def _end_with_parent() -> Callable[[], None]:
    """A function for a new process: SIGTERM comes to it when this process is gone."""
    library = ctypes.CDLL(None)  # loaded here, since a forked process should do little
    return lambda: library.prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def _told(stage: Stage, code: int, log: Path, begin: int) -> int:
    """Prints why a stage failed; returns the exit code of the whole."""
    ended_by = 256 - code if code > 192 else max(0, -code)  # launchers return 256 - N
    text = log.read_bytes()[begin:].decode("utf-8", errors="replace")
    for line in text.splitlines()[-_LAST_LINES:]:
        print(f"  | {line}", file=sys.stderr)
    if ended_by:
        name = signal.strsignal(ended_by) or "unknown"
        why = (
            f"was ended by signal {ended_by}, {name} (9 often means that the host ran out of "
            "memory); the same command goes on"
        )
        code = EXIT_RANK_LOST
    elif code == 0:
        why, code = f"ended without {stage.complete[-1]}", 1
    else:
        why = f"ended with exit code {code}"
        if code == EXIT_STOPPED:
            why += ", stopped on request or by train.max_hours; the same command goes on"
    print(f"cpo_ds: error: {stage} {why}. All of its output: {log}", file=sys.stderr, flush=True)
    return code


def duration(seconds: float) -> str:
    """A time for people: `3.2 s`, `12 min 05 s`, `3 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
