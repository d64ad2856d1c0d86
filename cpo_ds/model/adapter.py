"""LoRA adapters: a starting one, which is continued or merged, and a new one."""

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
from cpo_ds.model.hub import unavailable
from cpo_ds.ranks.liveness import count_work

# Makes sharded parameters whole inside a `with` block and keeps what is written to them.
GatherParameters = Callable[[Iterable[nn.Parameter]], AbstractContextManager[Any]]


def gather_nothing(parameters: Iterable[nn.Parameter]) -> AbstractContextManager[Any]:
    """The `GatherParameters` of a model that is not sharded: its parameters are whole already."""
    return nullcontext()


def with_adapter(causal_lm: Any, config: Config, merge: Callable[[Any], Any]) -> Any:
    """Returns the model as the recipe trains it, with its adapters, if any.

    A starting adapter is continued, or handed to `merge`, which returns the plain model. Raises
    `UserError` for an adapter that cannot be merged and exported exactly.
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
    """Loads an adapter of any kind that peft knows, by name or folder, and adds it to the model.

    Raises `UserError` if the adapter is missing, incomplete or does not fit the model.
    """
    try:
        settings = starting_settings(config, adapter)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # peft only warns of weights that the files lack
            adapted = peft.PeftModel.from_pretrained(
                causal_lm,
                adapter,
                config=settings,
                is_trainable=config.continues_adapter,
                autocast_adapter_dtype=False,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unavailable("LoRA adapter", adapter, error) from None
    messages = [str(warning.message) for warning in caught]
    missing = next((message for message in messages if "missing" in message), None)
    if missing:
        raise UserError(
            f"the LoRA adapter {adapter} does not hold all of its weights for this model: "
            f"{one_line(missing)}"
        )
    return adapted


def starting_settings(config: Config, adapter: str) -> Any:
    """PEFT's settings of the starting adapter, trainable if the recipe continues it.

    Raises `UserError` if they cannot be read or contradict the recipe's `lora` section.
    """
    try:
        settings = peft.PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise unavailable("LoRA adapter", adapter, error) from None
    settings.inference_mode = not config.continues_adapter
    if config.continues_adapter and config.lora:
        _check_same_adapter(settings, config.lora, adapter)
        settings.lora_dropout = config.lora.dropout
    return settings


def _check_same_adapter(settings: Any, lora: LoraConfig, adapter: str) -> None:
    """Raises `UserError` if the recipe's `lora` section describes another adapter."""

    def modules(names: Any) -> Any:
        return names if isinstance(names, str) else sorted(names)

    for name, of_adapter, in_recipe in (
        ("rank", settings.r, lora.rank),
        ("alpha", settings.lora_alpha, lora.alpha),
        ("target_modules", modules(settings.target_modules), modules(lora.target_modules)),
    ):
        if of_adapter != in_recipe:
            raise UserError(
                f"lora.{name} is {in_recipe}, but the adapter {adapter} that the run continues has "
                f"{of_adapter}; make them equal, or leave the lora section out."
            )


def _new_adapter(causal_lm: Any, lora: LoraConfig, seed: int) -> Any:
    # All ranks draw the same numbers: each makes the whole small matrices, then shards them.
    torch.manual_seed(seed)
    return add_adapter(causal_lm, new_settings(lora))


def add_adapter(causal_lm: Any, settings: Any) -> Any:
    """Adds a new adapter of PEFT's `settings`. Raises `UserError` if it does not fit the model."""
    try:
        return peft.get_peft_model(causal_lm, settings, autocast_adapter_dtype=False)
    except (ValueError, re.error) as error:
        raise UserError(
            f"lora.target_modules {settings.target_modules} does not fit this model: "
            f"{one_line(error)}"
        ) from None


def new_settings(lora: LoraConfig) -> Any:
    """PEFT's settings of a new adapter, from the recipe's `lora` section."""
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )


@torch.no_grad()
def merge_adapter(
    adapted: Any,
    gather:
    # Makes sharded parameters whole inside a `with` block and keeps what is written to them.
    GatherParameters = gather_nothing,
) -> Any:
    """Adds a LoRA adapter to its base weights, one layer at a time; returns the plain model."""
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            count_work()
            weight = module.get_base_layer().weight
            with gather(module.parameters()):
                weight += module.get_delta_weight("default").to(weight.dtype)
    return adapted.unload()
