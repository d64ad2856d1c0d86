"""What a run tells: metrics.jsonl, TensorBoard, a progress bar, throughput and memory."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cpo_ds.config import LossConfig
from cpo_ds.devices import find_device
from cpo_ds.errors import UserError
from cpo_ds.losses import PairTerms, nll_denominator, nll_weight
from cpo_ds.run.tensorboard import EventFile
from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.storage.files import replacing

# Columns of the sums that travel from micro-batches to the log in one tensor.
COLUMNS = ("preference", "nll", "correct", "margin", "logp_chosen", "logp_rejected")


def pair_columns(terms: PairTerms, logps: PairLogps) -> torch.Tensor:
    """The columns of each pair, detached: [P, len(COLUMNS)], float64 so that sums are exact."""
    margin = terms.rewards_chosen - terms.rewards_rejected
    columns = (terms.preference, terms.nll, margin > 0, margin, logps.chosen, logps.rejected)
    return torch.stack([column.detach().double() for column in columns], dim=1)


def summarize(sums: list[float], totals: StepTotals, loss: LossConfig) -> dict[str, float]:
    """Sums of `COLUMNS` over the global batch -> the metrics of a step, by their logged names."""
    by_name = dict(zip(COLUMNS, sums, strict=True))
    preference = by_name["preference"] / totals.pairs
    nll = by_name["nll"] / nll_denominator(totals, loss)
    return {
        "loss": preference + nll_weight(loss) * nll,
        "preference_loss": preference,
        "nll_loss": nll,
        "reward_accuracy": by_name["correct"] / totals.pairs,
        "reward_margin": by_name["margin"] / totals.pairs,
        "logp_chosen": by_name["logp_chosen"] / totals.pairs,
        "logp_rejected": by_name["logp_rejected"] / totals.pairs,
    }


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def peak_tflops(device: torch.device) -> float | None:
    """The device's data-sheet peak in bfloat16, where it is known."""
    if device.type != "cuda":
        return None
    memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    known = find_device(torch.cuda.get_device_name(device), memory_gib)
    return known.peak_bf16_tflops if known else None


class Stopwatch:
    """Throughput between two logged steps."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._steps = self._pairs = self._tokens = 0
        self._flops = 0.0

    def count(self, totals: StepTotals, flops: float) -> None:
        """Counts one step."""
        self._steps += 1
        self._pairs += totals.pairs
        self._tokens += totals.unique_tokens
        self._flops += flops

    def read(self, world_size: int, peak: float | None) -> dict[str, float | None]:
        """Rates since the last reading; a device's TFLOP/s are the mean over all."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        tflops = self._flops / seconds / world_size / 1e12
        rates = {
            "step_seconds": seconds / max(1, self._steps),
            "pairs_per_second": self._pairs / seconds,
            "tokens_per_second": self._tokens / seconds,
            "model_tflops": tflops,
            "mfu": None if peak is None else tflops / peak,
        }
        self._start, self._steps, self._pairs, self._tokens, self._flops = now, 0, 0, 0, 0.0
        return rates

    def pause(self) -> float:
        """Starts time that does not count (evaluation, saving); pass the result to `go_on`."""
        return time.perf_counter()

    def go_on(self, paused_at: float) -> None:
        """Takes the time since `pause` out of the reading."""
        self._start += time.perf_counter() - paused_at


class Monitor:
    """Writes to metrics.jsonl, TensorBoard and the terminal; on ranks other than 0, nothing."""

    def __init__(
        self, folder: Path, *, is_writer: bool, tensorboard: bool, first_step: int, total_steps: int
    ) -> None:
        self._file: int | None = None
        self._unwritten = b""
        self._warned: set[str] = set()
        self._events: EventFile | None = None
        self._bar: Any = None
        if not is_writer:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._bar = tqdm(
            total=total_steps, initial=first_step, unit="step", disable=not sys.stderr.isatty()
        )
        self._path = folder / "metrics.jsonl"
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        if tensorboard:
            self._events = self._open_events(folder / "tensorboard", first_step)

    def _open_events(self, folder: Path, first_step: int) -> EventFile | None:
        try:
            return EventFile(folder, first_step)
        except OSError as error:
            self._warn("TensorBoard events cannot be written", error)
            return None

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line; numbers that are not finite become null, which JSON can hold.

        A full disk stops no run: lines wait in memory until there is room, TensorBoard ends.
        """
        if self._file is None:
            return
        self._unwritten += (json.dumps(_finite(line)) + "\n").encode()
        self._flush()
        if self._events is not None:
            try:
                self._events.write(line["step"], _scalars(line))
            except OSError as error:
                self._warn("TensorBoard events are not written any more", error)
                self._events = None

    def _flush(self) -> None:
        try:
            while self._file is not None and self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
        except OSError as error:
            self._warn("metrics.jsonl cannot be written, its lines wait in memory", error)

    def _warn(self, what: str, error: OSError) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self.say(f"warning: {what}: {error.strerror}.")

    def sync(self) -> None:
        """Waits until the written lines are on disk."""
        if self._file is None:
            return
        self._flush()
        try:
            os.fsync(self._file)
        except OSError as error:
            self._warn("metrics.jsonl may not be on disk", error)

    def advance(self, steps: int = 1) -> None:
        """Moves the progress bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def show(self, line: dict[str, Any]) -> None:
        """Shows a logged step in the bar, or as a line of its own where there is no terminal."""
        if self._bar is None:
            return
        text = (
            f"loss {line['loss']:.4f}  reward accuracy {line['reward_accuracy']:.3f}  "
            f"{line['pairs_per_second']:.1f} pairs/s  {line['tokens_per_second']:.0f} tokens/s  "
            f"{line['peak_memory_gib']:.1f} GiB"
        )
        if self._bar.disable:
            left = (self._bar.total - line["step"]) * line["step_seconds"]
            print(f"step {line['step']}/{self._bar.total}  {text}  {_clock(left)} left", flush=True)
        else:
            self._bar.set_postfix_str(text)

    def say(self, text: str) -> None:
        """Prints a line on rank 0 without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Closes files and bar. Raises `UserError`, on rank 0, where lines found no room."""
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            self._flush()
            os.close(self._file)
            self._file = None
        if self._unwritten:
            lines, self._unwritten = self._unwritten.count(b"\n"), b""
            raise UserError(
                f"the last {lines} line(s) of {self._path} could not be written (see above); make "
                "room and run the same command again, which repeats what they were about."
            )


def cut_back_metrics(folder: Path, step: int) -> None:
    """Drops the lines of metrics.jsonl that a run, resumed or new, is about to repeat.

    Raises `UserError` where that cannot be written.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        return
    lines, kept = metrics.read_bytes().splitlines(keepends=True), []
    for line in lines:
        try:
            content = json.loads(line) if line.endswith(b"\n") else {"step": step}
            # What was measured after the step is measured again.
            if content["step"] < step or (content["step"] == step and "loss" in content):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a run that was killed while it wrote
    if kept == lines:
        return
    try:
        with replacing(metrics) as unfinished:
            unfinished.write_bytes(b"".join(kept))
    except OSError as error:
        raise UserError(
            f"{metrics} cannot be cut back to step {step}, from where the run goes on: "
            f"{error.strerror}; make room and run the same command again."
        ) from None


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by their tags in TensorBoard."""
    return {
        f"{'eval' if name.startswith('eval_') else 'train'}/{name}": value
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "epoch")
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
