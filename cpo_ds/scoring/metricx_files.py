"""Finds, downloads, identifies and reads the files of MetricX models."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from cpo_ds.errors import UserError, one_line
from cpo_ds.scoring.checkpoint import download, fingerprint_of
from cpo_ds.scoring.metrics import Metric
from cpo_ds.storage.hub_names import looks_like_path

TOKENIZER = "spiece.model"
_TOKENIZER_OF = "google/mt5-xl"  # whose tokenizer all MetricX models have, without a copy
_SINGLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks


@dataclass(frozen=True)
class MetricXFiles:
    """A model's folder, its files of weights, mT5's tokenizer, and digits that identify them."""

    folder: Path
    weights: tuple[Path, ...]
    tokenizer: Path
    fingerprint: str


def find_metricx(metric: Metric) -> MetricXFiles:
    """The files of a metric on this machine; those of a hub name are downloaded first.

    Raises `UserError` if they are missing, gated or not whole.
    """
    folder = Path(metric.location).expanduser()
    if not folder.is_dir():
        if folder.exists() or looks_like_path(metric.location):
            raise UserError(
                f"--metric {metric.name}: there is no folder {metric.location}; give a folder with "
                "config.json and weights, or a name like google/metricx-24-hybrid-xl-v2p6."
            )
        folder = download(metric.name, metric.location)
    weights = _weight_files(folder)
    tokenizer = folder / TOKENIZER
    if not tokenizer.is_file():
        tokenizer = download(metric.name, _TOKENIZER_OF, TOKENIZER) / TOKENIZER
    settings = (folder / "config.json").read_bytes()
    digests = [fingerprint_of(path, "MetricX") for path in weights]
    digest = hashlib.sha256(json.dumps(digests).encode() + settings + tokenizer.read_bytes())
    return MetricXFiles(folder, weights, tokenizer, digest.hexdigest()[:16])


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder's weights. Raises `UserError` if there are none, or one is missing."""
    for name in _SINGLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return (folder / name,)
        if index.is_file():
            try:
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{index} cannot be read: {one_line(error)}; get it again."
                ) from None
            missing = sorted(name for name in names if not (folder / name).is_file())
            if missing:
                raise UserError(f"{folder} lacks {missing[0]}; get the whole model.")
            return tuple(folder / name for name in sorted(names))
    raise UserError(f"{folder} has no weights ({' or '.join(_SINGLE)}); get the whole model.")


def read_weights(files: MetricXFiles) -> dict[str, torch.Tensor]:
    """A model's weights by name, mapped into memory: they are read when they are used.

    Raises `UserError` if a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for path in files.weights:
        try:
            if path.suffix == ".safetensors":
                weights |= load_file(path)
            else:
                weights |= torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (SafetensorError, RuntimeError, OSError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {one_line(error)}; get it again.") from None
    return weights
