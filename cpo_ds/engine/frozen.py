"""A frozen model split over the ranks by ZeRO-3: a layer is whole only while it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
from torch import nn


def shard_frozen(module: nn.Module, fill: Callable[[str, nn.Module], None], world_size: int) -> Any:
    """Splits the parameters of `module` over the ranks; returns the engine that gathers them.

    `fill(name, part)` gives the parameters of a part of it their values, those of rank 0 counting,
    just before they are split: no process ever holds more than its share and one such part. Keep
    the engine as long as the module is in use, and call the module itself; all ranks must call it
    equally often.
    """
    parts = _parts(module)
    largest = max(sum(p.numel() for p in part.parameters(recurse=False)) for _, part in parts)
    settings = _settings(largest, world_size)
    for name, part in parts:
        fill(name, part)
        deepspeed.zero.Init(module=part, config_dict_or_path=settings, mem_efficient_linear=False)
    engine, *_ = deepspeed.initialize(model=module, config=settings, dist_init_required=False)
    engine.eval()
    return engine


def _parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that have parameters of their own, inner ones first."""
    named = reversed(list(module.named_modules()))
    return [(name, part) for name, part in named if any(True for _ in part.parameters(False))]


def _settings(largest: int, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration; `largest` is the size, in elements, of the largest part."""
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": largest,
            "stage3_max_live_parameters": 2 * largest,
            "stage3_max_reuse_distance": 0,
        },
    }
