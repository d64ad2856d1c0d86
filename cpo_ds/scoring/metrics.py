"""Metrics by name: COMET models, chrF and BLEU."""

from __future__ import annotations

from dataclasses import dataclass

from cpo_ds.schema import UserError

LEXICAL = ("chrf", "bleu")
_HUB = {
    "kiwi": "Unbabel/wmt23-cometkiwi-da-xxl",
    "kiwi-xxl": "Unbabel/wmt23-cometkiwi-da-xxl",
    "kiwi-xl": "Unbabel/wmt23-cometkiwi-da-xl",
    "kiwi-22": "Unbabel/wmt22-cometkiwi-da",
    "xcomet": "Unbabel/XCOMET-XXL",
    "xcomet-xxl": "Unbabel/XCOMET-XXL",
    "xcomet-xl": "Unbabel/XCOMET-XL",
    "comet-22": "Unbabel/wmt22-comet-da",
    "wmt22-cometkiwi-da": "Unbabel/wmt22-cometkiwi-da",
    "wmt22-comet-da": "Unbabel/wmt22-comet-da",
    "wmt23-cometkiwi-da-xl": "Unbabel/wmt23-cometkiwi-da-xl",
    "wmt23-cometkiwi-da-xxl": "Unbabel/wmt23-cometkiwi-da-xxl",
}


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
        model = model or name
        if model.lower() in LEXICAL:
            model = model.lower()
        metrics.append(Metric(name, _HUB.get(model.lower(), model)))
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--metric {name} is given twice; name one of them NAME=CHECKPOINT.")
    return metrics
