"""Writes a run's metrics to metrics.jsonl, TensorBoard and trackers, and shows its progress."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cpo_ds.errors import UserError
from cpo_ds.run.line_file import LineFile
from cpo_ds.run.outlook import RECENT, clock, rise_warning, time_left
from cpo_ds.run.tensorboard import EventFile, as_markdown
from cpo_ds.run.trackers import TrackerThread, end_trackers
from cpo_ds.schema import TokenizedPair
from cpo_ds.storage.held_out_file import PAIRS_FILE, PairMargin, kept_indices, write_margins
from cpo_ds.storage.metrics_file import METRICS_FILE, SAMPLES_FILE, Line

_SAMPLES_TAG = "eval/samples/text_summary"
_SHOWN_SAMPLES = 20  # translations in TensorBoard; samples.jsonl has all


class SilentMonitor:
    """The monitor of ranks other than 0: it writes and shows nothing. `Monitor` does the work."""

    def write(self, line: Line) -> None:
        """Appends a line of metrics to the files. Numbers that are not finite become null."""

    def write_samples(self, samples: list[Line]) -> None:
        """Appends translations to samples.jsonl, and their text to TensorBoard's events."""

    def write_margins(
        self, step: int, pairs: Sequence[TokenizedPair], margins: Sequence[float]
    ) -> None:
        """Keeps the reward margins of held-out pairs in held_out_pairs.jsonl."""

    def sync(self) -> None:
        """Waits until the written lines are on disk."""

    def advance(self) -> None:
        """Moves the progress bar by one step."""

    def show(self, line: Line) -> None:
        """Shows a logged step in the progress bar, or as a line of text without a terminal."""

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress bar."""

    def close(self) -> None:
        """Closes files and bar. Raises `UserError` if lines could not be written to the end."""


class Monitor(SilentMonitor):
    """The monitor of rank 0.

    A full disk does not stop the run. Lines wait in memory until there is room; TensorBoard's
    events end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool,
        first_step: int,
        total_steps: int,
        trackers: Sequence[TrackerThread] = (),
    ) -> None:
        """Opens the files in `folder`. `first_step` is 0, or the checkpoint's that is resumed."""
        folder.mkdir(parents=True, exist_ok=True)
        self._bar: Any = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not sys.stderr.isatty(),
            # tqdm's own time left would jump after each evaluation.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self._first_step = first_step
        self._step_seconds: deque[float] = deque(maxlen=RECENT)
        self._losses: list[float] = []
        self._warnings: set[str] = set()  # each is printed once
        self._margins: list[list[PairMargin]] = []  # of evaluations that wait for room
        self._metrics = LineFile(folder / METRICS_FILE, self._warn)
        self._samples = LineFile(folder / SAMPLES_FILE, self._warn)
        self._metrics.open()
        self._last_step = first_step
        self._trackers = trackers
        self._events: EventFile | None = None
        if tensorboard:
            self._events = self._open_events(folder / "tensorboard", first_step)

    def _open_events(self, folder: Path, first_step: int) -> EventFile | None:
        try:
            return EventFile(folder, first_step)
        except OSError as error:
            self._warn("TensorBoard events cannot be written", error)
            return None

    def write(self, line: Line) -> None:
        """Appends a line to metrics.jsonl, and hands it to TensorBoard and the trackers."""
        self._metrics.write(line)
        self._to_events(lambda events: events.write(line["step"], _scalars(line)))
        self._last_step = line["step"]
        for tracker in self._trackers:
            tracker.write(line)
        self._say_of_trackers()

    def write_samples(self, samples: list[Line]) -> None:
        """Appends translations to samples.jsonl, and the first of them to TensorBoard's events."""
        self._samples.write(*samples)
        text = as_markdown(samples[:_SHOWN_SAMPLES])
        self._to_events(lambda events: events.write_text(samples[0]["step"], _SAMPLES_TAG, text))

    def write_margins(
        self, step: int, pairs: Sequence[TokenizedPair], margins: Sequence[float]
    ) -> None:
        """Keeps the reward margins of held-out pairs in held_out_pairs.jsonl."""
        kept = [
            PairMargin(step, pairs[index].origin, pairs[index].direction, margins[index])
            for index in kept_indices(len(pairs))
        ]
        # Only the first and the latest evaluation are kept.
        self._margins = [*self._margins[:1], kept]
        self._flush_margins()

    def _flush_margins(self) -> None:
        """Writes the evaluations that wait, if there is room."""
        try:
            while self._margins:
                write_margins(self._metrics.path.parent, self._margins[0])
                del self._margins[0]
        except OSError as error:
            self._warn(f"{PAIRS_FILE} cannot be written, its lines wait in memory", error)

    def _to_events(self, write: Callable[[EventFile], None]) -> None:
        """Writes TensorBoard's events, if they are asked for and there was room so far."""
        if self._events is not None:
            try:
                write(self._events)
            except OSError as error:
                self._warn("TensorBoard events are not written any more", error)
                self._events = None

    def _say_of_trackers(self) -> None:
        for tracker in self._trackers:
            for message in tracker.messages():
                self.say(message)

    def _warn(self, problem: str, error: OSError) -> None:
        if problem not in self._warnings:
            self._warnings.add(problem)
            self.say(f"warning: {problem}: {error.strerror}.")

    def sync(self) -> None:
        """Waits until the written lines are on disk."""
        self._flush_margins()
        self._metrics.sync()
        self._samples.sync()

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        self._bar.update()

    def show(self, line: Line) -> None:
        """Shows a logged step in the progress bar, or as a line of text without a terminal."""
        self._step_seconds.append(line["step_seconds"])
        text = (
            f"loss {line['loss']:.4f}  reward accuracy {line['reward_accuracy']:.3f}  "
            f"{line['pairs_per_second']:.1f} pairs/s  {line['tokens_per_second']:.0f} tokens/s  "
            f"{line['peak_memory_gib']:.1f} GiB"
        )
        parts = [text]
        if line["step"] >= self._first_step + 3:  # the first steps may be slow ones
            seconds = time_left(self._step_seconds, self._bar.total - line["step"])
            parts.append(f"{clock(seconds)} left")
        if self._bar.disable:
            print(f"step {line['step']}/{self._bar.total}  {'  '.join(parts)}", flush=True)
        else:  # the time left first, since a narrow terminal cuts the end off
            self._bar.set_postfix_str("  ".join(reversed(parts)))
        self._losses.append(line["loss"])
        self._warn_of_rise(line["learning_rate"])

    def _warn_of_rise(self, learning_rate: float) -> None:
        """Says once that the loss has risen far above its start."""
        warning = rise_warning(self._losses, learning_rate)
        if warning is not None and "rise" not in self._warnings:
            self._warnings.add("rise")
            self.say(warning)

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Closes files and bar. Raises `UserError` if lines could not be written to the end."""
        self._bar.close()
        if self._events is not None:
            self._events.close()
        end_trackers(self._trackers, complete=self._last_step == self._bar.total)
        self._say_of_trackers()
        self._flush_margins()
        unwritten = {file.path: file.close() for file in (self._metrics, self._samples)}
        for path, lines in unwritten.items():
            if lines:
                raise UserError(
                    f"the last {lines} line(s) of {path} could not be written (see above); make "
                    "room and run the same command again, which repeats the steps of these lines."
                )


def _scalars(line: Line) -> dict[str, float]:
    """The numbers of a line by their tags in TensorBoard."""
    return {
        f"{'eval' if name.startswith('eval_') else 'train'}/{name}": value
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "epoch")
    }
