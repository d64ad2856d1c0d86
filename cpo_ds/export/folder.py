"""Writes a model or adapter as a folder that transformers, peft and vLLM load."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.checkpoint.publish import (
    checkpoint_name,
    publish_folder,
    replaced_name,
    unfinished_name,
)
from cpo_ds.config import Config
from cpo_ds.engine.engine import Engine, gather_parameters
from cpo_ds.errors import UserError
from cpo_ds.export.card import card_facts, model_card
from cpo_ds.export.portable import write_model_settings, write_tokenizer
from cpo_ds.model.adapter import kept_weights, merge_trained
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.storage.files import sync

Named = tuple[str, torch.Tensor]

SHARD_BYTES = 5 * 10**9  # of a safetensors file, as transformers splits models


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


def write_pretrained(
    engine: Engine, ranks: Ranks, config: Config, tokenizer: Any, folder: Path, manifest: Manifest
) -> str:
    """Writes the adapter or the full model with its tokenizer; returns its kind for the log.

    All ranks call it. Rank 0 writes, with one shard in memory at a time. `manifest` is that of the
    last step. Raises `UserError` on all ranks if the export cannot be written.

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
    problem = None
    if ranks.rank == 0:
        on_host = ((name, whole.to("cpu", copy=True)) for name, whole in gathered)
        try:
            write_folder(folder, make_export(model, tokenizer, config, manifest), on_host)
        except OSError as error:
            problem = f"{error.filename or folder}: {error.strerror}"
    # All ranks gather each weight together: the others do so here, and rank 0 after an error.
    for _ in gathered:
        pass
    ranks.on_first(lambda: _check_written(problem, folder, manifest.step))
    return "LoRA adapter" if as_adapter else "full model"


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


def _check_written(problem: str | None, folder: Path, step: int) -> None:
    """Raises `UserError` for a problem, with advice that depends on whether the step is saved."""
    if problem is None:
        return
    run = folder.parent
    if (run / "checkpoints" / checkpoint_name(step)).is_dir():
        advice = (
            f"The checkpoint of step {step} is saved: after the repair, `cpo-ds export {run}`, "
        )
        advice += "or the same command again, writes the export."
    else:
        advice = f"The checkpoint of step {step} is not saved either; run the same command again."
    raise UserError(f"the export could not be written: {problem}. {advice}")


def write_folder(
    folder: Path, export: Export, weights: Iterable[Named], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes an export, then gives it its name, in place of an older export if there is one.

    `weights` are in the order of the model's parameters. Raises `OSError` if the export cannot be
    written, and removes its files.
    """
    unfinished = folder.with_name(unfinished_name(folder.name))
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        if isinstance(export.model, peft.PeftModel):
            _write_adapter(unfinished, export, dict(weights))
        else:
            _write_model(unfinished, export, iter(weights), shard_bytes)
        write_tokenizer(unfinished, export.tokenizer)
        (unfinished / "README.md").write_text(export.card, encoding="utf-8")
        for file in unfinished.rglob("*"):
            sync(file)
        publish_folder(unfinished, folder)
        shutil.rmtree(folder.with_name(replaced_name(folder.name)), ignore_errors=True)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) or "os error" not in str(error):
            raise
        # safetensors and tokenizers, written in Rust, raise errors of their own.
        raise OSError(0, str(error), str(folder)) from None


def _write_adapter(folder: Path, export: Export, weights: dict[str, torch.Tensor]) -> None:
    named = peft.get_peft_model_state_dict(
        export.model, state_dict=weights, save_embedding_layers=False
    )
    contiguous = {name: weight.contiguous() for name, weight in (export.kept | named).items()}
    save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = copy.deepcopy(export.model.peft_config["default"])
    settings.inference_mode = True
    settings.base_model_name_or_path = export.base
    settings.save_pretrained(folder)


def _write_model(folder: Path, export: Export, weights: Iterator[Named], shard_bytes: int) -> None:
    model, dtype = export.model, getattr(torch, export.dtype)
    sizes = {
        name: getattr(parameter, "ds_numel", parameter.numel()) * dtype.itemsize
        for name, parameter in model.named_parameters()
    }
    write_model_settings(folder, model, export.dtype)
    write_shards(folder, weights, plan_shards(sizes, shard_bytes))


def plan_shards(sizes: dict[str, int], shard_bytes: int) -> list[dict[str, int]]:
    """Cuts named sizes, in order, into shards of at most `shard_bytes`, or of one larger tensor."""
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    return shards


def write_shards(folder: Path, weights: Iterator[Named], shards: list[dict[str, int]]) -> None:
    """Writes safetensors files, one shard in memory at a time, and an index if there are several.

    `shards` are the sizes in bytes of the weights, by name and in their order.
    """
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in shard:
            next_name, tensor = next(weights)
            assert next_name == name, f"weights are out of order: {next_name} instead of {name}"
            tensors[name] = tensor.contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(size for shard in shards for size in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
