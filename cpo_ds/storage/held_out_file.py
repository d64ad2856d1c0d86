"""Keeps the reward margin of each held-out pair, at the first and at the latest evaluation.

runs/x/held_out_pairs.jsonl    a line for each pair and evaluation; texts stay in the data
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cpo_ds.storage.files import replacing

PAIRS_FILE = "held_out_pairs.jsonl"
MOST_PAIRS = 10_000  # of each evaluation, so that the file stays small


class PairMargin(NamedTuple):
    """A held-out pair's reward margin after a step; `origin` is its file and line."""

    step: int
    origin: str
    direction: str
    reward_margin: float


def kept_indices(count: int) -> range:
    """The indices of the pairs whose margins are kept: all, or evenly spaced ones of many."""
    return range(0, count, max(1, math.ceil(count / MOST_PAIRS)))


def write_margins(folder: Path, margins: Sequence[PairMargin]) -> None:
    """Replaces the latest evaluation by this one; the first one stays.

    A run that begins anew evaluates before its first step, and then nothing of another run is
    left. Raises `OSError` if the file cannot be read or written.
    """
    earlier = [margin for margin in _read(folder) if margin.step < margins[0].step]
    first = min((margin.step for margin in earlier), default=None)
    kept = [margin for margin in earlier if margin.step == first]
    with (
        replacing(folder / PAIRS_FILE) as unfinished,
        unfinished.open("w", encoding="utf-8") as file,
    ):
        for margin in (*kept, *margins):
            values = margin._asdict()
            if not math.isfinite(margin.reward_margin):
                values["reward_margin"] = None
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_margins(folder: Path) -> list[PairMargin]:
    """The margins in a run's folder; lines that are damaged or hold no number are left out."""
    try:
        return _read(folder)
    except OSError:
        return []


def _read(folder: Path) -> list[PairMargin]:
    """The margins of a folder's file, if it has one. Raises `OSError`."""
    try:
        text = (folder / PAIRS_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    margins = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            margin = PairMargin(*(values[name] for name in PairMargin._fields))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        kinds = zip(margin, (int, str, str, float), strict=True)
        if all(isinstance(value, kind) for value, kind in kinds):
            margins.append(margin)
    return margins
