"""Reads a run's metrics.jsonl, and cuts it back for a run that repeats some of its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.storage.files import replacing

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"  # translations at evaluations

Line = dict[str, Any]  # one JSON object: the metrics of a step or of an evaluation


def read_metrics(run: Path, last_step: int | None = None) -> tuple[list[Line], list[Line]]:
    """Reads the training lines and the evaluation lines of a run's metrics.jsonl.

    With `last_step`, only lines up to that step. Raises `UserError` if the file does not exist
    or has a damaged line.
    """
    path = run / METRICS_FILE
    if not path.is_file():
        raise UserError(f"there is no {path}; give the output_dir of a run.")
    lines = [line for line in _lines(path) if last_step is None or line["step"] <= last_step]
    training = [line for line in lines if "loss" in line]
    return training, [line for line in lines if "eval_loss" in line]


def _lines(path: Path) -> list[Line]:
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a run that was killed may leave half a line
    lines = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            content = json.loads(line)
            if not isinstance(content["step"], int):
                raise ValueError(line)
            lines.append(content)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}, line {number}: not a line of metrics, a JSON object with a step; remove "
                "that line."
            ) from None
    return lines


def cut_back_metrics(folder: Path, step: int) -> None:
    """Drops the lines of metrics and samples that a run is about to write again, past its `step`.

    `step` is the checkpoint's that a run resumes from, or 0 for a new run. Raises `UserError` if
    a file cannot be written.
    """
    for name in (METRICS_FILE, SAMPLES_FILE):
        _cut_back(folder / name, step)


def _cut_back(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines, kept = path.read_bytes().splitlines(keepends=True), []
    for line in lines:
        try:
            content = json.loads(line) if line.endswith(b"\n") else {"step": step}
            # A checkpoint is saved before the held-out pairs are evaluated, so the run evaluates
            # its step again: only the step's own line, which has a loss, is kept.
            if content["step"] < step or (content["step"] == step and "loss" in content):
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # the last line of a run that was killed while it wrote
    if kept == lines:
        return
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(b"".join(kept))
    except OSError as error:
        raise UserError(
            f"{path} cannot be cut back to step {step}, from where the run goes on: "
            f"{error.strerror}; make room and run the same command again."
        ) from None
