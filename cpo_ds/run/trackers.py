"""Sends a run's metrics to trackers of experiments, each in a thread of its own.

A tracker may be slow, may not answer, or may fail: training neither waits for it nor ends with it.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from cpo_ds.config import Config
from cpo_ds.errors import one_line
from cpo_ds.run.tracker_kinds import OPENERS, Start, TrackedRun
from cpo_ds.storage.files import replacing
from cpo_ds.storage.metrics_file import METRICS_FILE, Line

FOLDER = "trackers"  # in the run's folder: how to go on with the tracker's run, and its own files
_SECONDS_TO_END = 60.0  # for all trackers, once the run's last line is written


class TrackerThread:
    """A thread that opens a run in a tracker, sends it lines of metrics, and ends it."""

    def __init__(self, name: str, open_run: Callable[[], TrackedRun]) -> None:
        self.name = name
        self._lines: SimpleQueue[Line | bool] = SimpleQueue()  # a bool ends the run
        self._messages: SimpleQueue[str] = SimpleQueue()
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, args=(open_run,), daemon=True)
        self._thread.start()

    def write(self, line: Line) -> None:
        """Hands over a line of metrics, and does not wait until it is sent."""
        self._lines.put(line)

    def messages(self) -> Iterator[str]:
        """Takes the messages for the run's log that have come up since the last call."""
        while True:
            try:
                yield self._messages.get_nowait()
            except Empty:
                return

    def end(self, *, complete: bool) -> None:
        """Asks the tracker to end its run; `complete` says whether all steps are trained."""
        self._lines.put(complete)

    def wait(self, deadline: float) -> None:
        """Waits for the end until `time.monotonic()` is `deadline`."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn("it does not answer")

    def _work(self, open_run: Callable[[], TrackedRun]) -> None:
        try:
            run = open_run()
        except Exception as error:
            self._warn(f"its run cannot be opened: {_described(error)}")
            return
        self._messages.put(f"{self.name}: {run.address}")
        while not isinstance(line := self._lines.get(), bool):
            try:
                run.write(line["step"], tracked_numbers(line))
            except Exception as error:
                self._warn(_described(error))
        try:
            run.close(complete=line)
        except Exception as error:
            self._warn(_described(error))

    def _warn(self, problem: str) -> None:
        """Makes one warning of the first problem; others of this tracker mostly follow from it."""
        if not self._has_warned:
            self._has_warned = True
            self._messages.put(
                f"warning: {self.name}: {problem}. The run goes on; metrics may be missing there, "
                f"{METRICS_FILE} has all."
            )


def _described(error: Exception) -> str:
    return (one_line(error) or type(error).__name__).rstrip(".")


def open_trackers(config: Config, *, resumes: bool) -> list[TrackerThread]:
    """Opens the trackers of a recipe, or with `resumes` goes on with those of an earlier start."""
    settings = config.model_dump(mode="json")
    return [
        TrackerThread(name, partial(_open, name, Path(config.output_dir), settings, resumes))
        for name in config.logging.trackers
        if name in OPENERS
    ]


def _open(name: str, folder: Path, settings: dict[str, Any], resumes: bool) -> TrackedRun:
    """Opens a tracker's run, and notes how a later start goes on with it."""
    note = folder / FOLDER / f"{name}.json"
    earlier = _read_note(note) if resumes else None
    note.parent.mkdir(exist_ok=True)
    run = OPENERS[name](Start(folder.absolute(), settings, earlier))
    with replacing(note) as unfinished:
        unfinished.write_text(json.dumps(run.identity) + "\n", encoding="utf-8")
    return run


def _read_note(note: Path) -> dict[str, str] | None:
    """The identity of an earlier start's run; None if it is missing or damaged."""
    try:
        identity = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return identity if isinstance(identity, dict) and identity else None


def end_trackers(trackers: Collection[TrackerThread], *, complete: bool) -> None:
    """Ends the runs of all trackers, and waits for them for at most a minute."""
    deadline = time.monotonic() + _SECONDS_TO_END
    for tracker in trackers:
        tracker.end(complete=complete)
    for tracker in trackers:
        tracker.wait(deadline)


def tracked_numbers(line: Line) -> dict[str, float]:
    """The finite numbers of a line by the names of metrics.jsonl, without its step.

    Numbers by direction are named like `eval_directions/en-de/loss`.
    """
    return {name: value for name, value in _numbers(line) if name != "step"}


def _numbers(values: dict[str, Any], above: Sequence[str] = ()) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        path = (*above, key)
        if isinstance(value, dict):
            yield from _numbers(value, path)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield "/".join(path), value
