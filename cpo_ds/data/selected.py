"""The metrics that selected preference pairs: they travel with the pairs into runs and exports.

An evaluation by one of them flatters a model that was trained on these pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpo_ds.config import Config
from cpo_ds.data.formats import MEAN_SPELLINGS
from cpo_ds.settings.data import DataConfig
from cpo_ds.storage.hub_names import looks_like_path

SELECTED_BY = "selected_by"  # a field of pairs, and of an export's card
_NO_NAMES = ("checkpoints", "snapshots", "model.ckpt", "/")


def metric_name(metric: str, scorers: Any) -> str:
    """The name of a metric by which any evaluation can know it and its relatives.

    That is the model's name, according to a row's field `scorers`; of a model in a local folder it
    is `NAME=FOLDER`, without the folders above.
    """
    record = scorers.get(metric) if isinstance(scorers, Mapping) else None
    model = record.get("model") if isinstance(record, Mapping) else None
    if not isinstance(model, str) or model == metric:
        return metric
    if not looks_like_path(model) and not Path(model).exists():
        return model
    parts = [part for part in Path(model).parts if part not in _NO_NAMES]
    return f"{metric}={parts[-1]}" if parts else metric


def metric_names(metrics: Iterable[str], scorers: Any) -> list[str]:
    """`metric_name` of each of the metrics."""
    return [metric_name(metric, scorers) for metric in metrics]


def with_selecting_metrics(config: Config, named: Sequence[str] | None) -> Config:
    """The configuration with the metrics that selected its pairs.

    `named` are those that the pairs name, or None if they name none.
    """
    if named is None:
        return config
    known = list(dict.fromkeys([*(config.data.selected_by or []), *named]))
    return config.model_copy(update={"data": config.data.model_copy(update={SELECTED_BY: known})})


def named_metrics(data: DataConfig, rows: Iterable[Mapping[str, Any]]) -> list[str] | None:
    """The metrics that selected the pairs of some rows; None if neither they nor settings say it.

    In the formats `alma-r` and `triplets` these are the parts of `data.scorer`.
    """
    if data.format == "alma-r":
        return ["kiwi", "xcomet"] if data.scorer in MEAN_SPELLINGS else [data.scorer]
    if data.format == "triplets":
        return _once(name for row in rows for name in _of_triplet(data.scorer, row))
    if data.format != "pairs":
        return None
    fields = [row[SELECTED_BY] for row in rows if isinstance(row.get(SELECTED_BY), list)]
    return _once(str(name) for field in fields for name in field) if fields else None


def _of_triplet(scorer: str, row: Mapping[str, Any]) -> list[str]:
    """The models behind the parts of `scorer`."""
    scores = row.get("scores")
    is_stored = isinstance(scores, Mapping) and scorer in scores
    parts = [scorer] if is_stored else scorer.split("+")
    parts = ["kiwi", "xcomet"] if scorer in MEAN_SPELLINGS else parts
    return metric_names(map(str.strip, parts), row.get("scorers"))


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
