"""chrF and BLEU of single sentences against the reference, by sacrebleu.

Both need no model and run anywhere. They measure likeness to one reference, which is not a quality
estimate.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.scoring.plan import Item

# BLEU's tokenizers for languages without spaces, as in the ALMA evaluation. For Japanese, sacrebleu
# has one that needs a further package, so characters stand in.
_UNSPACED = {"zh": "zh", "yue": "zh"} | dict.fromkeys(("ja", "th", "lo", "km", "my", "bo"), "char")


def score(name: str, items: list[Item]) -> list[float]:
    """The `chrf` or `bleu` of each translation, from 0 to 100."""
    return [
        _metric(name, base_code(parse_direction(item.language_pair)[1]))
        .sentence_score(item.translation, [item.reference])
        .score
        for item in items
    ]


def signature(name: str) -> str:
    """sacrebleu's record of its settings, for a target language that is written with spaces."""
    _metric(name, "en").sentence_score("a", ["a"])  # the signature is complete after a score
    return str(_metric(name, "en").get_signature())


@cache
def _metric(name: str, target: str) -> Any:
    """sacrebleu's metric for a target language."""
    if name == "chrf":
        return CHRF()
    return BLEU(effective_order=True, tokenize=_UNSPACED.get(target, "13a"))
