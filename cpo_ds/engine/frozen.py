"""A frozen model split over the ranks by ZeRO-3: a layer is whole only while it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
from deepspeed.utils import set_z3_leaf_module
from torch import nn


def shard_frozen(module: nn.Module, fill: Callable[[str, nn.Module], None], world_size: int) -> Any:
    """Splits the parameters of `module` over the ranks; returns the engine that gathers them.

    `fill(name, submodule)` writes one submodule's parameters just before they are split; rank 0's
    values win. So a process never holds more than its share and one such submodule. Keep the engine
    as long as the module is in use, and call the module itself. All ranks must call it equally
    often.
    """
    submodules = _with_parameters(module)
    sizes = [sum(p.numel() for p in sub.parameters(recurse=False)) for _, sub in submodules]
    settings = _settings(max(sizes), world_size)
    for name, submodule in submodules:
        fill(name, submodule)
        deepspeed.zero.Init(
            module=submodule, config_dict_or_path=settings, mem_efficient_linear=False
        )
    engine, *_ = deepspeed.initialize(model=module, config=settings, dist_init_required=False)
    engine.eval()
    return engine


@contextmanager
def split_while_loading(dtype: str, world_size: int) -> Iterator[None]:
    """Makes transformers split each parameter over the ranks as it loads a model."""
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    precision = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype)
    settings = _settings(1, world_size) | ({precision: {"enabled": True}} if precision else {})
    keep = HfDeepSpeedConfig(settings)  # transformers finds it by a weak reference
    try:
        yield
    finally:
        del keep
        unset_hf_deepspeed_config()


def gather_by_layer(model: nn.Module, world_size: int) -> Any:
    """Makes the layers of a split model whole while they compute; returns the engine that does it.

    Parameters that are whole yet, like those of an adapter, are split too. A layer is gathered with
    all that it holds, since modules inside may use each other's parameters. Keep the engine as long
    as the model is in use. All ranks must call the model equally often.
    """
    layers = list(_layers(model))
    for layer in layers:
        set_z3_leaf_module(layer, True)
    largest = max(sum(getattr(p, "ds_numel", p.numel()) for p in x.parameters()) for x in layers)
    settings = _settings(largest, world_size)
    engine, *_ = deepspeed.initialize(model=model, config=settings, dist_init_required=False)
    engine.eval()
    return engine


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The elements of a model's lists of layers, and its modules beside them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif any(isinstance(inner, nn.ModuleList) for inner in child.modules()):
            yield from _layers(child)
        else:
            yield child


def _with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules that have parameters of their own, with their names, inner ones first."""
    named = reversed(list(module.named_modules()))
    return [(name, sub) for name, sub in named if any(True for _ in sub.parameters(recurse=False))]


def _settings(largest: int, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration; `largest` is the size, in elements, of the largest submodule."""
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            # Keep nothing whole, and gather one submodule ahead of the one that computes.
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": largest,
            "stage3_max_live_parameters": 2 * largest,
            "stage3_max_reuse_distance": 0,
            # DeepSpeed's own product of a linear layer saves memory in training, and rounds
            # differently from torch's.
            "memory_efficient_linear": False,
        },
    }
