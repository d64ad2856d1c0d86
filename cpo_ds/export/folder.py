"""Writes a model or adapter as a folder that transformers, peft and vLLM load."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.config import Config
from cpo_ds.engine.engine import Engine, gather_parameters
from cpo_ds.export.card import card_facts, model_card
from cpo_ds.export.portable import write_model_settings, write_tokenizer
from cpo_ds.export.publish import check_written, unfinished_folder
from cpo_ds.export.shards import SHARD_BYTES, Named, plan_shards, save_tensors, write_shards
from cpo_ds.model.adapter import kept_weights, merge_trained
from cpo_ds.model.fingerprint import checksum
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.storage.files import sync

Sum = tuple[Any, ...]


@dataclass(frozen=True)
class Export:
    """Everything in an export but its weights.

    `model` gives names, shapes and settings: a PEFT model makes an adapter, any other a full model.
    `base` names the model that an adapter belongs to, in a way that works from any folder. `kept`
    are weights of the base that belong to the adapter and were not trained.
    """

    model: Any
    tokenizer: Any
    base: str
    dtype: str
    card: str
    kept: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """The settings and weights that an export must give when it is loaded again.

    `settings` are transformers' of a full model, or PEFT's of an adapter. `sums` are checksums of
    the weights by their names in the model.
    """

    settings: Any
    dtype: str
    sums: dict[str, Sum]


def write_pretrained(
    engine: Engine, ranks: Ranks, config: Config, tokenizer: Any, folder: Path, manifest: Manifest
) -> Written | None:
    """Writes the adapter or the full model with its tokenizer, to be published by `finish_export`.

    All ranks call it. Rank 0 writes, with one shard in memory at a time; the others return None.
    `manifest` is that of the last step. Raises `UserError` on all ranks if the export cannot be
    written.

    An adapter that was trained on top of a merged one has a base model that exists nowhere on disk.
    Then the full model is written, with both adapters merged into it. That changes the policy in
    memory, so nothing can be trained afterwards.
    """
    # Merge, if there is no base model for the adapter alone.
    as_adapter = exports_adapter(config)
    model = engine.policy.language_model
    if config.trains_adapter and not as_adapter:
        model = engine.policy.language_model = merge_trained(model, gather_parameters)
    # Rank 0 writes one gathered weight after the other.
    gathered = engine.whole_parameters(trained_only=as_adapter)
    problem = written = None
    if ranks.rank == 0:
        on_host = ((name, whole.to("cpu", copy=True)) for name, whole in gathered)
        try:
            export = make_export(model, tokenizer, config, manifest)
            written = write_unfinished(folder, export, on_host)
        except OSError as error:
            problem = f"{error.filename or folder}: {error.strerror}"
    # All ranks gather each weight together: the others do so here, and rank 0 after an error.
    for _ in gathered:
        pass
    ranks.on_first(lambda: check_written(problem, folder, manifest.step))
    return written


def make_export(
    model: Any, tokenizer: Any, config: Config, manifest: Manifest, dtype: str | None = None
) -> Export:
    """Makes the export of a checkpoint. `dtype` is the precision of its weights, else the run's."""
    dtype = dtype or config.model.dtype
    as_adapter = isinstance(model, peft.PeftModel)
    facts = card_facts(config, manifest.step, as_adapter=as_adapter, dtype=dtype)
    card = model_card(config, manifest, facts)
    start = config.model.adapter if as_adapter and config.continues_adapter else None
    kept = kept_weights(model, start) if start else {}
    kept = {name: weight.to(getattr(torch, dtype)) for name, weight in kept.items()}
    return Export(model, tokenizer, _named_anywhere(config.model.name_or_path), dtype, card, kept)


def _named_anywhere(name_or_path: str) -> str:
    """Returns the absolute path of a local folder, and a name of the hub unchanged."""
    path = Path(name_or_path)
    if not path.is_dir():
        return name_or_path
    path = path.absolute()
    return str(path.resolve() if ".." in path.parts else path)


def exports_adapter(config: Config) -> bool:
    """Whether a run's export is an adapter rather than a full model."""
    return config.trains_adapter and (config.model.adapter is None or config.continues_adapter)


def write_unfinished(
    folder: Path, export: Export, weights: Iterable[Named], shard_bytes: int = SHARD_BYTES
) -> Written:
    """Writes an export to `unfinished_folder`.

    `weights` are in the order of the model's parameters. Raises `OSError` if the export cannot be
    written, and removes its files.
    """
    unfinished = unfinished_folder(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    sums: dict[str, Sum] = {}
    summed = _with_sums(weights, sums)
    try:
        unfinished.mkdir(parents=True)
        if isinstance(export.model, peft.PeftModel):
            _write_adapter(unfinished, export, dict(summed))
            settings = export.model.peft_config["default"]
        else:
            _write_model(unfinished, export, summed, shard_bytes)
            settings = export.model.config
        write_tokenizer(unfinished, export.tokenizer)
        (unfinished / "README.md").write_text(export.card, encoding="utf-8")
        for file in unfinished.rglob("*"):
            sync(file)
        return Written(copy.deepcopy(settings), export.dtype, sums)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) or "os error" not in str(error):
            raise
        # safetensors and tokenizers, written in Rust, raise errors of their own.
        raise OSError(0, str(error), str(folder)) from None


def _with_sums(weights: Iterable[Named], sums: dict[str, Sum]) -> Iterator[Named]:
    """Yields weights, and notes the checksum of each."""
    for name, weight in weights:
        sums[name] = sum_of(weight)
        yield name, weight


def sum_of(weight: torch.Tensor) -> Sum:
    """Precision, shape and checksum of a weight's bits."""
    sums = checksum(weight.detach().contiguous().flatten(), 0)
    return (str(weight.dtype), tuple(weight.shape), *sums.tolist())


def _write_adapter(folder: Path, export: Export, weights: dict[str, torch.Tensor]) -> None:
    named = peft.get_peft_model_state_dict(
        export.model, state_dict=weights, save_embedding_layers=False
    )
    # Each has memory of its own: peft names trained biases of whole layers twice.
    pointers: set[int] = set()
    for name, weight in (export.kept | named).items():
        shared = weight.data_ptr() in pointers
        named[name] = weight.clone() if shared else weight.contiguous()
        pointers.add(weight.data_ptr())
    save_tensors(named, folder / "adapter_model.safetensors")
    settings = copy.deepcopy(export.model.peft_config["default"])
    settings.inference_mode = True
    settings.base_model_name_or_path = export.base
    # peft keeps names of modules in sets, whose order differs between processes.
    for name, value in vars(settings).items():
        if isinstance(value, set):
            setattr(settings, name, sorted(value))
    settings.save_pretrained(folder)


def _write_model(folder: Path, export: Export, weights: Iterator[Named], shard_bytes: int) -> None:
    model, dtype = export.model, getattr(torch, export.dtype)
    sizes = {
        name: getattr(parameter, "ds_numel", parameter.numel()) * dtype.itemsize
        for name, parameter in model.named_parameters()
    }
    write_model_settings(folder, model, export.dtype)
    write_shards(folder, weights, plan_shards(sizes, shard_bytes))
