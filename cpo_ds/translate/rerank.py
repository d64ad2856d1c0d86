"""Chooses the best of several translations of a source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cpo_ds.data.candidates import CandidateRow, write_rows
from cpo_ds.errors import UserError
from cpo_ds.ranks.relaunch import without_ranks

MBR = "mbr"
_NAME = "metric"  # of the scores in the file that passes them on


def choose_by_chrf(texts: Sequence[str]) -> int:
    """The index of the translation that is likest to the others by chrF: minimum Bayes risk.

    Translations that occur several times count several times. Of equal ones the first is chosen,
    and an empty one only if all are empty.
    """
    from sacrebleu.metrics import CHRF  # imported late: it takes a moment

    filled = [index for index, text in enumerate(texts) if text]
    if len(filled) < 2:
        return filled[0] if filled else 0
    metric = CHRF()
    likeness: dict[tuple[str, str], float] = {}

    def score(index: int) -> float:
        total = 0.0
        for other in filled:
            if other != index:
                pair = texts[index], texts[other]
                if pair not in likeness:
                    likeness[pair] = metric.sentence_score(pair[0], [pair[1]]).score
                total += likeness[pair]
        return total

    return max(filled, key=lambda index: (score(index), -index))


def choose_by_metric(
    rows: Sequence[CandidateRow],
    texts: Sequence[Sequence[str]],
    metric: str,
    folder: Path,
    options: Sequence[str],
) -> list[int]:
    """For each row, the index of the translation that a metric scores highest.

    The metric is one of `cpo-ds prepare score`. It sees source and translation, no reference. Of
    equal ones the first is chosen, and an empty one only if all are empty. Scores are kept in
    `folder`. Raises `UserError` if the metric cannot score.
    """
    # Each row goes there with its samples, named by number; rows without any stay here.
    filled = [{str(i): text for i, text in enumerate(own) if text} for own in texts]
    asked = [
        {"language_pair": row.language_pair, "source": row.source, "candidates": own}
        for row, own in zip(rows, filled, strict=True)
        if own
    ]
    if not asked:
        return [0] * len(texts)
    samples, scored = folder / "samples.jsonl", folder / "scored.jsonl"
    write_rows(samples, asked)
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "score", "--input", str(samples)]
    command += ["--output", str(scored), "--metric", f"{_NAME}={metric}", *options]
    if subprocess.run(command, env=without_ranks(os.environ), check=False).returncode:
        raise UserError(
            f"the metric {metric} could not score the samples, as said above. They are kept: give "
            "the same command again when that is mended."
        )
    lines = scored.read_text(encoding="utf-8").splitlines()
    scores = iter([json.loads(line)["scores"][_NAME] for line in lines])
    return [_highest(next(scores)) if own else 0 for own in filled]


def _highest(scores: dict[str, float]) -> int:
    """The number with the highest score; the smallest of equal ones."""
    return max(map(int, scores), key=lambda number: (scores[str(number)], -number))
