"""The metrics that selected preference pairs: they travel with the pairs into runs and exports.

An evaluation by one of them flatters a model that was trained on these pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cpo_ds.config import Config, DataConfig
from cpo_ds.data.formats import MEAN_SPELLINGS
from cpo_ds.data.sources import read_raw
from cpo_ds.errors import UserError
from cpo_ds.storage.hub_names import looks_like_path

SELECTED_BY = "selected_by"  # a field of pairs, and of an export's card
_ROWS = 200_000  # read at most; the pairs of one selection name the same metrics
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


def with_selecting_metrics(config: Config) -> Config:
    """The configuration with the metrics that selected its pairs, as far as the pairs name them."""
    named = _selecting_metrics(config.data)
    if named is None:
        return config
    known = list(dict.fromkeys([*(config.data.selected_by or []), *named]))
    return config.model_copy(update={"data": config.data.model_copy(update={SELECTED_BY: known})})


def _selecting_metrics(data: DataConfig) -> list[str] | None:
    """The metrics that selected the pairs; None if nothing names them."""
    if data.format == "alma-r":
        return ["kiwi", "xcomet"] if data.scorer in MEAN_SPELLINGS else [data.scorer]
    if data.format not in ("pairs", "triplets") or data.path is None:
        return None
    try:
        rows = [raw.values for raw in islice(read_raw(data.path, data.split), _ROWS) if raw]
    except UserError:  # it is raised again when the pairs are read
        return None
    if data.format == "triplets":
        return _of_triplets(data.scorer, rows)
    fields = [row[SELECTED_BY] for row in rows if isinstance(row.get(SELECTED_BY), list)]
    return list(dict.fromkeys(str(name) for field in fields for name in field)) if fields else None


def _of_triplets(scorer: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The models behind the parts of `data.scorer`."""
    means = ["kiwi", "xcomet"]
    is_stored = any(isinstance(r.get("scores"), dict) and scorer in r["scores"] for r in rows)
    parts = means if scorer in MEAN_SPELLINGS else [scorer] if is_stored else scorer.split("+")
    names = [metric_names(map(str.strip, parts), row.get("scorers")) for row in rows]
    return list(dict.fromkeys(name for of_row in names for name in of_row))
