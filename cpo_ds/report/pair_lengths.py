"""Reads the lengths of a run's training pairs from the tokenized pairs in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpo_ds.report.drawings import Histogram

if TYPE_CHECKING:
    import numpy as np

_BINS = 32


def read_lengths(folder: Path) -> dict[str, np.ndarray]:
    """Tokens of prompts, chosen and rejected completions; empty if the folder has no such file."""
    # Imported late, and only if there is a file: pyarrow takes half a second.
    files = sorted((folder / "pairs").glob("*.arrow"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return {}
    from cpo_ds.data.pair_file import Damaged, map_file, read_pairs

    try:
        _, train, _ = read_pairs(map_file(files[-1]), ("", ""))
        return train.lengths_by_part()
    except (Damaged, OSError, ValueError, KeyError, TypeError, IndexError):
        return {}


def histogram(
    name: str, colour: int, values: Sequence[float] | np.ndarray, ends: tuple[float, float]
) -> Histogram:
    """Counts of values in equal bins between two ends; values beyond count in the outermost."""
    import numpy as np

    counts, edges = np.histogram(np.clip(values, *ends), _BINS, ends)
    return Histogram(name, colour, edges.tolist(), counts.tolist())
