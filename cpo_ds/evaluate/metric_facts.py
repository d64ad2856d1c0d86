"""Facts about metrics that a reader of scores needs: scales, relatives, and references."""

from __future__ import annotations

from typing import NamedTuple

from cpo_ds.scoring.metrics import model_name


class Facts(NamedTuple):
    """What a metric's scores mean."""

    family: str  # metrics of one family share training data, encoders or counts of letters
    scale: float = 1  # a factor for tables
    lower_is_better: bool = False
    needs_reference: bool = False


_LEXICAL = Facts("lexical", needs_reference=True)
_UNKNOWN = "unknown"
LEXICAL_FAMILY, COMET_FAMILY, METRICX_FAMILY = "lexical", "comet", "metricx"


def facts_of(metric: str, model: str | None = None) -> Facts:
    """The facts of a metric, by its name in the results or by the model behind it.

    A model that is not known makes a family of its own, so nothing is said of its relatives.
    """
    name = model_name(model or metric).lower()
    if name in ("chrf", "bleu", "ter", "chrf++"):
        return _LEXICAL
    if "metricx" in name:
        return Facts(METRICX_FAMILY, lower_is_better=True)
    if "comet" in name or "kiwi" in name:
        return Facts(COMET_FAMILY, 100, needs_reference=name.endswith("wmt22-comet-da"))
    return Facts(f"{_UNKNOWN}:{name}")
