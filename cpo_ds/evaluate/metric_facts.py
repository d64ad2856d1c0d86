"""Facts about metrics that a reader of scores needs: scales, and families of relatives."""

from __future__ import annotations

from typing import NamedTuple

from cpo_ds.scoring.metrics import model_name

LEXICAL, COMET, METRICX, BLEURT = "lexical", "COMET", "MetricX", "BLEURT"


class Facts(NamedTuple):
    """The meaning of a metric's scores.

    Metrics of one family share training data and encoders, or count the same strings. A model that
    is not known is a family of its own, so nothing is said of its relatives.
    """

    family: str
    scale: float = 1  # a factor for tables
    lower_is_better: bool = False
    worst: float = 0  # the score of an empty translation


def facts_of(metric: str, model: str | None = None) -> Facts:
    """The facts of a metric, by its name in the results or by the model behind it."""
    name = model_name(model or metric).lower()
    if name in ("bleu", "chrf"):
        return Facts(LEXICAL)
    if "metricx" in name:
        return Facts(METRICX, lower_is_better=True, worst=25)
    if "bleurt" in name:
        return Facts(BLEURT, 100)
    if any(part in name for part in ("comet", "kiwi", "unite")):
        return Facts(COMET, 100)
    return Facts(name)
