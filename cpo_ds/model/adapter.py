"""LoRA adapters: one to start from, trained on or merged, and a new one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn

from cpo_ds.config import Config, LoraConfig
from cpo_ds.errors import UserError, one_line
from cpo_ds.model.file_checks import check_plain_lora
from cpo_ds.model.hub import not_there
from cpo_ds.ranks.liveness import count_work

GatherParameters = Callable[[Iterable[nn.Parameter]], AbstractContextManager[Any]]


def gather_nothing(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """Parameters that are whole as they are."""
    return nullcontext()


def with_adapter(causal_lm: Any, config: Config, merge: Callable[[Any], Any]) -> Any:
    """Adds the starting adapter (to be trained on, or handed to `merge`) and a new one.

    Raises `UserError` for one that cannot be merged and exported exactly.
    """
    if config.model.adapter:
        check_plain_lora(config.model.adapter)
        adapted = starting_adapter(causal_lm, config, config.model.adapter)
        if config.continues_adapter:
            return adapted
        causal_lm = merge(adapted)
    if config.lora is None:
        return causal_lm.requires_grad_(True)
    return _new_adapter(causal_lm, config.lora, config.train.seed)


def starting_adapter(causal_lm: Any, config: Config, adapter: str) -> Any:
    """The model with an adapter of any kind that peft knows, by its name or folder, beside it.

    Raises `UserError` if it is not there, is not whole or does not fit.
    """
    try:
        settings = starting_settings(config, adapter)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(
                causal_lm,
                adapter,
                config=settings,
                is_trainable=config.continues_adapter,
                autocast_adapter_dtype=False,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise not_there("LoRA adapter", adapter, error) from None
    missing = next((str(w.message) for w in said if "missing" in str(w.message)), None)
    if missing:
        raise UserError(
            f"the LoRA adapter {adapter} does not hold all of its weights for this model: "
            f"{one_line(missing)}"
        )
    return adapted


def starting_settings(config: Config, adapter: str) -> Any:
    """PEFT's settings of the starting adapter, to be trained on where the recipe says so."""
    try:
        settings = peft.PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise not_there("LoRA adapter", adapter, error) from None
    settings.inference_mode = not config.continues_adapter
    if config.continues_adapter and config.lora:
        _check_same_adapter(settings, config.lora, adapter)
        settings.lora_dropout = config.lora.dropout
    return settings


def _check_same_adapter(settings: Any, lora: LoraConfig, adapter: str) -> None:
    def modules(names: Any) -> Any:
        return names if isinstance(names, str) else sorted(names)

    for name, there, here in (
        ("rank", settings.r, lora.rank),
        ("alpha", settings.lora_alpha, lora.alpha),
        ("target_modules", modules(settings.target_modules), modules(lora.target_modules)),
    ):
        if there != here:
            raise UserError(
                f"lora.{name} is {here}, but the adapter {adapter} that the run continues has "
                f"{there}; make them equal, or leave the lora section out."
            )


def _new_adapter(causal_lm: Any, lora: LoraConfig, seed: int) -> Any:
    # The same seed on every rank: each makes the whole of these small matrices, then shards them.
    torch.manual_seed(seed)
    return adapted(causal_lm, new_settings(lora))


def adapted(causal_lm: Any, settings: Any) -> Any:
    """The model with a new adapter of these settings. Raises `UserError` where it does not fit."""
    try:
        return peft.get_peft_model(causal_lm, settings, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:
        raise UserError(
            f"lora.target_modules {settings.target_modules} does not fit this model: "
            f"{one_line(error)}"
        ) from None


def new_settings(lora: LoraConfig) -> Any:
    """PEFT's settings of a new adapter."""
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )


@torch.no_grad()
def merge_adapter(adapted: Any, gather: GatherParameters = gather_nothing) -> Any:
    """Adds a LoRA adapter to its base weights, one layer at a time; returns the plain model."""
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            count_work()
            weight = module.get_base_layer().weight
            with gather(module.parameters()):
                weight += module.get_delta_weight("default").to(weight.dtype)
    return adapted.unload()
