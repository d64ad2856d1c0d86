"""BLEU and chrF of whole test sets by sacreBLEU, with its signatures."""

from __future__ import annotations

from cpo_ds.evaluate.results import Result
from cpo_ds.evaluate.rows import Direction
from cpo_ds.evaluate.signature import make_signature, text_settings
from cpo_ds.scoring.corpus import make_metric

NAMES = {"bleu": "BLEU", "chrf": "chrF2"}  # as sacreBLEU calls them


def score_direction(name: str, model: str, direction: Direction, tokenizer: str) -> list[Result]:
    """The score of each system of a direction; `model` is `bleu` or `chrf`."""
    metric = make_metric(model, direction.references, tokenizer)
    results = []
    for system in direction.systems:
        translations = direction.translations(system)
        score = metric.corpus_score(translations, None).score
        settings = dict(part.split(":", 1) for part in str(metric.get_signature()).split("|"))
        texts = text_settings(translations, direction.sources, direction.references)
        named = {"test": direction.test_set}
        signature = make_signature(NAMES[model], settings | named | texts)
        results.append(
            Result(system, direction.language_pair, name, score, len(translations), signature)
        )
    return results
