"""BLEU and chrF of the translations that a run makes at an evaluation, by sacreBLEU."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from cpo_ds.data.formats import LEXICAL
from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.data.reread import PairTexts

# sacreBLEU names chrF with its beta, and BLEU as such.
_SAYS = {"chrf": "chrF", "bleu": "BLEU"}


def compared_with(texts: Sequence[PairTexts]) -> str:
    """`"reference"` if each row has a reference, else `"chosen"`: its chosen text stands in."""
    return "reference" if all(text.reference for text in texts) else "chosen"


def flatterers(selected_by: Sequence[str] | None) -> list[str]:
    """The metrics that selected a run's pairs and are relatives of BLEU and chrF."""
    return [name for name in selected_by or [] if name.lower() in LEXICAL]


def cautions(texts: Sequence[PairTexts], selected_by: Sequence[str] | None) -> list[str]:
    """Sentences on why the scores of `score_samples` say less than they seem to."""
    said = []
    if compared_with(texts) == "chosen":
        said.append("not every row has a reference: train.sample_metrics takes the chosen texts")
    if names := flatterers(selected_by):
        said.append(f"{' and '.join(names)} selected the pairs: BLEU and chrF flatter this run")
    return said


def score_samples(
    metrics: Sequence[str],
    texts: Sequence[PairTexts],
    translations: Sequence[str],
    selected_by: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The values of an evaluation's line: the mean of directions by metric, and each direction.

    Names say if chosen texts stood in for references. `interferes` is true if one of the metrics
    `selected_by`, which selected the run's pairs, flatters these scores. Nothing without `metrics`.
    """
    if not metrics:
        return {}
    # Imported late: most runs need no sacreBLEU.
    from cpo_ds.scoring.corpus import make_metric, tokenizer_of

    # Score each direction as a test set of its own.
    stands_in = compared_with(texts)
    directions: dict[str, dict[str, Any]] = {}
    for direction in sorted({text.direction for text in texts}):
        of_direction = [
            (translation, text.chosen if stands_in == "chosen" else text.reference or "")
            for text, translation in zip(texts, translations, strict=True)
            if text.direction == direction
        ]
        outputs, references = map(list, zip(*of_direction, strict=True))
        target = base_code(parse_direction(direction)[1]) if direction else "en"
        scores: dict[str, Any] = {"translations": len(outputs)}
        for name in metrics:
            metric = make_metric(name, references, tokenizer_of(target).name)
            scores[name] = metric.corpus_score(outputs, None).score
            scores[f"{name}_signature"] = str(metric.get_signature())
        directions[direction or "unknown"] = scores

    # Their plain mean.
    ending = "_to_chosen" if stands_in == "chosen" else ""
    means = {
        f"eval_sample_{name}{ending}": statistics.fmean(s[name] for s in directions.values())
        for name in metrics
    }
    record = {
        "decoding": "greedy",
        "compared_with": stands_in,
        "interferes": bool(flatterers(selected_by)),
        "directions": directions,
    }
    return means | {"eval_samples": record}


def scores_in_words(values: dict[str, Any]) -> str:
    """The means of `score_samples` for people, or ""."""
    if not values:
        return ""
    scores = [
        f"{_SAYS[name]} {score:.1f}"
        for key, score in values.items()
        for name in _SAYS
        if key.startswith(f"eval_sample_{name}")
    ]
    other = values["eval_samples"]["compared_with"]
    against = "the references" if other == "reference" else "the chosen texts, not references"
    return f"; {', '.join(scores)} against {against} (greedy: not the published protocol)"
