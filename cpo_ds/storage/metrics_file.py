"""Reads what a run wrote to metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError

Line = dict[str, Any]


def read_metrics(run: Path, last_step: int | None = None) -> tuple[list[Line], list[Line]]:
    """The training lines and the held-out lines of a run's metrics.jsonl, up to a step (all).

    Raises `UserError` where there is none.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"there is no {path}; give the output_dir of a run.")
    lines = [line for line in _lines(path) if last_step is None or line["step"] <= last_step]
    return [line for line in lines if "loss" in line], [x for x in lines if "eval_loss" in x]


def _lines(path: Path) -> list[Line]:
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a run that was killed may leave half a line
    return [json.loads(line) for line in whole.splitlines()]
