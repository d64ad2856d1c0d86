"""Metrics by name: COMET and MetricX models, chrF and BLEU."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cpo_ds.data.formats import LEXICAL
from cpo_ds.data.json_text import is_unicode
from cpo_ds.errors import UserError, did_you_mean

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
_QE = ":qe"  # ends the model of a MetricX metric that must not see the reference
_METRICX = {
    f"metricx-24{size}{estimate}": f"google/metricx-24-hybrid{size or '-xxl'}-v2p6{qe}"
    for size in ("", "-xxl", "-xl", "-large")
    for estimate, qe in (("", ""), ("-qe", _QE))
}
KNOWN = (*LEXICAL, *_HUB, *_METRICX)  # short names
_BY_ANY_NAME = _HUB | {name.lower(): name for name in _HUB.values()}
# The two metrics that chose the pairs of ALMA-R-Preference, by their names in that data set.
_SHORT = {"Unbabel/wmt23-cometkiwi-da-xxl": "kiwi", "Unbabel/XCOMET-XXL": "xcomet"}


def model_name(metric: str) -> str:
    """The hub's name of a metric with a short name; any other name unchanged."""
    if metric.lower() in _METRICX:
        return _METRICX[metric.lower()]
    known = _BY_ANY_NAME.get(metric.lower().removeprefix("unbabel/"))
    return f"Unbabel/{known}" if known else metric


def short_name(metric: str) -> str:
    """A metric's name in ALMA-R-Preference, `kiwi` or `xcomet`; any other name unchanged."""
    return _SHORT.get(model_name(metric), metric)


@dataclass(frozen=True)
class Metric:
    """A metric: the name of its scores in the rows, and the model that makes them.

    `model` is a name on the Hugging Face hub, a path, or `chrf` or `bleu`. That of a MetricX metric
    ends in `:qe` if it must not see the reference.
    """

    name: str
    model: str

    @property
    def is_lexical(self) -> bool:
        """Whether the metric is chrF or BLEU, which compare strings and need no model."""
        return self.model in LEXICAL

    @property
    def location(self) -> str:
        """The name on the hub or the path of the model."""
        return self.model.removesuffix(_QE)

    @property
    def is_estimate(self) -> bool:
        """Whether a MetricX metric estimates quality without the reference."""
        return self.model.endswith(_QE)

    @property
    def is_metricx(self) -> bool:
        """Whether the model is a MetricX one: a folder of an mT5 model, or so named on the hub."""
        path = Path(self.location).expanduser()
        if not path.exists():
            return "metricx" in self.location.lower()
        try:
            settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
            return settings["model_type"] == "mt5"
        except (OSError, ValueError, KeyError, TypeError):
            return False


def parse_metrics(texts: list[str], others: Collection[str] = ()) -> list[Metric]:
    """The metrics given on the command line, as `NAME`, a checkpoint, or `NAME=CHECKPOINT`.

    `others` are names for the message on an unknown one, besides the known ones. Raises `UserError`
    for a malformed or an unknown one, and if two have the same name.
    """
    metrics = []
    for text in texts:
        name, equals, model = text.partition("=")
        if not name or (equals and not model):
            raise UserError(f"--metric {text!r}: write a name, a checkpoint, or NAME=CHECKPOINT.")
        if not is_unicode(name):
            raise UserError(f"--metric {text!r}: the name is not valid UTF-8; give another one.")
        model = model_of(model or name, f"--metric {text}", others)
        metrics.append(Metric(name, model))
    names = [metric.name for metric in metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--metric {name} is given twice; name one of them NAME=CHECKPOINT.")
    return metrics


def model_of(metric: str, option: str, others: Collection[str] = ()) -> str:
    """The model of a metric that has a known name, or is a checkpoint.

    `option` is what the user gave, for messages; `others` are more names to propose. Raises
    `UserError` for a metric that is unknown or not served.
    """
    model = model_name(metric)
    _check_served(option, model)
    if model.lower() in LEXICAL:
        return model.lower()
    if "/" in model or Path(model.removesuffix(_QE)).exists():
        return model
    known = [*others, *KNOWN]
    raise UserError(
        f"{option}: there is no metric {model!r}{did_you_mean(model, known)}; known are "
        f"{', '.join(known)}. Any other is given as OWNER/NAME on the hub, or as a checkpoint's "
        "file or folder."
    )


def _check_served(option: str, model: str) -> None:
    """Raises `UserError` for a metric that is known and not served."""
    if "metricx-23" in model.lower():
        raise UserError(
            f"{option}: MetricX-23 reads other inputs than MetricX-24; take metricx-24."
        )
    if "bleurt" in model.lower():
        raise UserError(
            f"{option}: BLEURT is not served, since its packages are no longer maintained "
            "or need TensorFlow; take metricx-24 or comet-22."
        )
