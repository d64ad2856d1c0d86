"""Metrics by name: COMET models, chrF and BLEU."""

from __future__ import annotations

from dataclasses import dataclass

from cpo_ds.data.formats import LEXICAL
from cpo_ds.errors import UserError

_HUB = {  # lower case, without the owner Unbabel
    "kiwi": "wmt23-cometkiwi-da-xxl",
    "kiwi-xxl": "wmt23-cometkiwi-da-xxl",
    "kiwi-xl": "wmt23-cometkiwi-da-xl",
    "kiwi-22": "wmt22-cometkiwi-da",
    "xcomet": "XCOMET-XXL",
    "xcomet-xxl": "XCOMET-XXL",
    "xcomet-xl": "XCOMET-XL",
    "comet-22": "wmt22-comet-da",
}
_HUB |= {name.lower(): name for name in _HUB.values()}
# What ALMA-R-Preference calls the two that chose its pairs.
_SHORT = {"Unbabel/wmt23-cometkiwi-da-xxl": "kiwi", "Unbabel/XCOMET-XXL": "xcomet"}


def model_name(metric: str) -> str:
    """The hub's name of a metric that goes by a shorter one; any other name as it is."""
    known = _HUB.get(metric.lower().removeprefix("unbabel/"))
    return f"Unbabel/{known}" if known else metric


def short_name(metric: str) -> str:
    """A metric's name in ALMA-R-Preference, `kiwi` or `xcomet`; any other name as it is."""
    return _SHORT.get(model_name(metric), metric)


@dataclass(frozen=True)
class Metric:
    """`name` is what its scores are called; `model` a hub name, a path, chrf or bleu."""

    name: str
    model: str

    @property
    def is_lexical(self) -> bool:
        """Whether it compares strings with the reference, without a model."""
        return self.model in LEXICAL


def parse_metrics(texts: list[str]) -> list[Metric]:
    """Metrics as they are given on the command line: `NAME`, a checkpoint, or `NAME=CHECKPOINT`.

    Raises `UserError` where two have the same name.
    """
    metrics = []
    for text in texts:
        name, equals, model = text.partition("=")
        if not name or (equals and not model):
            raise UserError(f"--metric {text!r}: write a name, a checkpoint, or NAME=CHECKPOINT.")
        model = model_name(model or name)
        metrics.append(Metric(name, model.lower() if model.lower() in LEXICAL else model))
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--metric {name} is given twice; name one of them NAME=CHECKPOINT.")
    return metrics
