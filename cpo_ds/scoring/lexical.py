"""chrF and BLEU of single sentences against the reference, by sacrebleu.

They need no model and run anywhere. They measure likeness to one reference, which is no estimate of
quality of its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from cpo_ds.scoring.plan import Item

# As in the ALMA evaluation, but for Japanese, whose tokenizer needs a package of its own.
_UNSPACED = {"zh": "zh", "ja": "char", "th": "char"}


def score(name: str, items: list[Item]) -> list[float]:
    """`chrf` or `bleu` of each translation, between 0 and 100."""
    return [
        _metric(name, item.language_pair.rpartition("-")[2])
        .sentence_score(item.translation, [item.reference])
        .score
        for item in items
    ]


def signature(name: str) -> str:
    """What sacrebleu says of its settings, for a target language that is written with spaces."""
    _metric(name, "en").sentence_score("a", ["a"])  # it knows only after a first score
    return str(_metric(name, "en").get_signature())


@cache
def _metric(name: str, target: str) -> Any:
    if name == "chrf":
        return CHRF()
    return BLEU(effective_order=True, tokenize=_UNSPACED.get(target, "13a"))
