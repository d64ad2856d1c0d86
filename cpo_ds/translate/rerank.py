"""Chooses the best of several translations of a source."""

from __future__ import annotations

from collections.abc import Sequence


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
