"""Finds, downloads, identifies and loads COMET checkpoints, without a second copy in memory.

COMET's own loading initializes a model at random and copies a whole checkpoint over it. That takes
twice the model's size in each process: 85 GB for a metric of 10.7 billion weights.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from cpo_ds.errors import UserError, one_line
from cpo_ds.scoring.metrics import Metric
from cpo_ds.storage.hub_names import looks_like_path, why_not_provided

_BLOCK_BYTES, _BLOCKS = 2**16, 64  # read of a checkpoint for its fingerprint


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's file, its settings, and 16 hexadecimal digits that identify its content."""

    path: Path
    settings: dict[str, Any]  # hparams.yaml
    fingerprint: str

    @property
    def kind(self) -> str:
        """The name of the COMET class, its `class_identifier`."""
        return self.settings["class_identifier"]


def find_checkpoint(metric: Metric) -> Checkpoint:
    """The checkpoint of a metric on this machine; one with a hub name is downloaded first.

    Raises `UserError` if the checkpoint is missing, gated, or not a whole COMET checkpoint.
    """
    # Take the path if it exists; a text like OWNER/NAME is a name on the hub.
    given = Path(metric.model).expanduser()
    path = _in_folder(given) if given.is_dir() else given
    if not path.is_file():
        is_name = metric.model.count("/") == 1 and not looks_like_path(metric.model)
        if given.exists() or not is_name:
            raise UserError(
                f"--metric {metric.name}: there is no checkpoint {metric.model}; give a "
                "checkpoints/model.ckpt, its folder, or a Hugging Face name like Unbabel/XCOMET-XL."
            )
        path = _in_folder(download(metric.name, metric.model))

    # Read the settings beside the checkpoint's folder.
    hparams = path.parent.parent / "hparams.yaml"
    if not hparams.is_file():
        raise UserError(f"{path} is no COMET checkpoint: there is no {hparams} beside it.")
    try:
        settings = yaml.safe_load(hparams.read_text(encoding="utf-8"))
        return Checkpoint(path, settings | {}, fingerprint_of(path, settings["class_identifier"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{hparams} cannot be read: {one_line(error)}; get it again.") from None


def _in_folder(folder: Path) -> Path:
    """The checkpoint in a folder laid out as on the hub; of several the last by name."""
    paths = sorted([*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")])
    return paths[-1] if paths else folder / "checkpoints" / "model.ckpt"


def download(metric: str, repository: str, *patterns: str) -> Path:
    """Downloads a repository of the hub, unless it is in the cache; returns its folder.

    `metric` is the name for messages; `patterns` are the files to get, if not all. Raises
    `UserError`.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns) or None))
    except errors.GatedRepoError:
        problem = (
            f"{repository} is gated: accept its licence on its Hugging Face page, then log in "
            "with `hf auth login` or set HF_TOKEN"
        )
    except errors.RepositoryNotFoundError:
        problem = f"there is no model {repository} on the Hugging Face hub; check the name"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        problem = f"{repository} is not on this machine, and {why_not_provided(error)}"
    except (errors.HfHubHTTPError, OSError) as error:
        problem = f"{repository} cannot be downloaded: {one_line(error)}"
    raise UserError(f"--metric {metric}: {problem}.")


def fingerprint_of(path: Path, kind: str) -> str:
    """A hash of the size and of blocks all over the file.

    Reading all of a checkpoint of 43 GB would take minutes.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{kind} {size}".encode())
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(block * max(0, size - _BLOCK_BYTES) // max(1, _BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """A checkpoint's weights by name, mapped into memory: they are read when they are used."""
    return _read(checkpoint.path)["state_dict"]


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint. Raises `UserError` if it cannot be read.

    A checkpoint is a pickle, which can run code. As with COMET itself, load only those you trust.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except (RuntimeError, OSError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}; get it again.") from None


def make_model(checkpoint: Checkpoint) -> Any:
    """The COMET model of a checkpoint; its weights have no values yet.

    They take no memory until values are written to them. Raises `UserError` if the model gives no
    scores, or its encoder's configuration or tokenizer is missing.
    """
    from comet.models import str2model
    from transformers.modeling_utils import no_init_weights

    logging.getLogger("comet").setLevel(logging.ERROR)  # else it prints that its encoder is frozen

    if checkpoint.kind not in str2model or checkpoint.kind == "ranking_metric":
        raise UserError(
            f"{checkpoint.path} is a {checkpoint.kind}, which gives no score for one translation."
        )
    model_class = str2model[checkpoint.kind]
    settings = dict(_read(checkpoint.path)["hyper_parameters"], load_pretrained_weights=False)
    if checkpoint.settings.get("layer_transformation") == "sparsemax_patch":
        settings["layer_transformation"] = "softmax"  # as COMET does, for its issue 244
    # As COMET does, pass on only those settings that the class has a parameter for.
    parameters = inspect.signature(model_class.__init__).parameters
    try:
        with no_init_weights():
            return model_class(**{k: v for k, v in settings.items() if k in parameters})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{checkpoint.path} is built on {settings.get('pretrained_model')}, whose configuration"
            f" and tokenizer cannot be loaded ({one_line(error)}); download them too."
        ) from None


def check_complete(model: Any, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raises `UserError` if a checkpoint lacks weights, or has them in another shape."""
    for name, parameter in model.named_parameters():
        if name not in weights:
            raise UserError(f"{path} lacks the weight {name}; get the whole checkpoint.")
        if weights[name].shape != parameter.shape:
            raise UserError(
                f"{path} has {name} as {tuple(weights[name].shape)}, its settings say "
                f"{tuple(parameter.shape)}; get the checkpoint and its hparams.yaml again."
            )
