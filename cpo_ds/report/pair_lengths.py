"""Reads the lengths of a run's training pairs from the tokenized pairs in its folder."""

from __future__ import annotations

from pathlib import Path

from cpo_ds.report.drawings import Histogram

_BINS = 32


def read_lengths(folder: Path) -> dict[str, list[int]]:
    """Tokens of prompts, chosen and rejected completions; empty if the folder has no such file."""
    # Imported late, and only if there is a file: pyarrow takes half a second.
    files = sorted((folder / "pairs").glob("*.arrow"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        return {}
    from cpo_ds.data.pair_file import Damaged, map_file, read_pairs

    try:
        _, train, _ = read_pairs(map_file(files[-1]), ("", ""))
        return {name: counts.tolist() for name, counts in train.lengths_by_part().items()}
    except (Damaged, OSError, ValueError, KeyError, TypeError, IndexError):
        return {}


def histogram(name: str, colour: int, values: list[float], ends: tuple[float, float]) -> Histogram:
    """Counts of values in equal bins between two ends."""
    low, high = ends
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, max(0, int((value - low) / width)))] += 1
    return Histogram(name, colour, [low + index * width for index in range(_BINS + 1)], counts)
