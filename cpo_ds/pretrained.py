"""The engine's weights -> a folder that transformers, peft and vLLM load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cpo_ds.config import Config
from cpo_ds.engine import Engine, gather_parameters
from cpo_ds.model.load import merge_adapter
from cpo_ds.ranks import Ranks


def write_pretrained(
    engine: Engine, ranks: Ranks, config: Config, tokenizer: Any, folder: Path
) -> str:
    """Writes the adapter, or the full model, with its tokenizer; returns which for the log.

    All ranks call it; rank 0 writes. An adapter trained on top of a merged one has a base model
    that exists nowhere on disk, so there the full model is written, both adapters merged into it,
    which changes the policy in memory: nothing can be trained after it.
    """
    merged_before = config.model.adapter is not None and not config.continues_adapter
    as_adapter = config.trains_adapter and not merged_before
    model = engine.policy.language_model
    if config.trains_adapter and merged_before:
        model = engine.policy.language_model = merge_adapter(model, gather_parameters)
    weights = {}
    for name, whole in engine.whole_parameters(trained_only=as_adapter):
        if ranks.rank == 0:
            weights[name] = whole.cpu().clone()
    if ranks.rank == 0:
        _write(model, weights, tokenizer, folder)
    dist.barrier()
    return "LoRA adapter" if as_adapter else "full model"


def _write(model: Any, weights: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    unfinished = folder.with_name(f"tmp-{folder.name}")
    generation = getattr(model, "generation_config", None)
    model.save_pretrained(unfinished, state_dict=weights)
    if generation is not None:
        generation.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
