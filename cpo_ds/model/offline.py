"""A run's model outside training: its outline without weights, or merged weight by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers

from cpo_ds.config import Config
from cpo_ds.model.adapter import (
    add_adapter,
    gather_nothing,
    new_settings,
    starting_adapter,
    starting_merging,
    starting_settings,
    untie,
)
from cpo_ds.model.adapter_checks import check_adapter, merge_unties
from cpo_ds.model.hub import adapter_weights
from cpo_ds.model.load import load_causal_lm, load_model_config
from cpo_ds.model.merging import Merging


def outline(config: Config) -> Any:
    """The model that a run trains, its trained adapter included, on the meta device.

    It holds names, shapes and settings, no weights. Raises `UserError` if the base, or the adapter
    that the run continues, cannot be read.
    """
    model_config = load_model_config(config.model.name_or_path)
    adapter, dtype = config.model.adapter, getattr(torch, config.model.dtype)
    if adapter:
        check_adapter(config.model, model_config)
        if not config.continues_adapter and merge_unties(adapter, model_config):
            model_config.tie_word_embeddings = False
    with torch.device("meta"), _uninitialized():
        model = transformers.AutoModelForCausalLM.from_config(model_config, dtype=dtype)
        model.generation_config = _generation_config(config.model.name_or_path, model)
        if config.continues_adapter:
            assert adapter is not None
            settings = starting_settings(config, adapter)
        elif config.lora is not None:
            settings = new_settings(config.lora)
        else:
            return model
        outlined = add_adapter(model, settings)
        # peft casts an adapter to its base layer's precision only if the model has weights.
        for parameter in outlined.parameters():
            parameter.data = parameter.data.to(model.dtype)
        return outlined


@contextmanager
def _uninitialized() -> Iterator[None]:
    """Leaves out the first values of linear layers, of which tensors without data keep nothing."""
    with (
        mock.patch.object(torch.nn.Linear, "reset_parameters", lambda layer: None),
        mock.patch.object(torch.nn.init, "kaiming_uniform_", lambda tensor, **named: tensor),
    ):
        yield


def _generation_config(name_or_path: str, model: Any) -> Any:
    """The settings of generation in the model's folder, else transformers' defaults for it."""
    try:
        return transformers.GenerationConfig.from_pretrained(name_or_path)
    except OSError:  # the folder has no generation_config.json
        return model.generation_config


def load_base(config: Config) -> Any:
    """The run's base model in the run's precision, on the CPU.

    Weights that the files hold in that precision are mapped into memory and read when used.
    """
    model_config = load_model_config(config.model.name_or_path)
    return load_causal_lm(config.model, model_config, "eager", torch.device("cpu"), False)


class LazyMerge:
    """Merges a run's adapters into its base model while the weights are read, one at a time.

    `model` is the base. Its own weights stay as they are, since merging into weights that are
    mapped files would copy all of them into memory. Raises `UserError` for an adapter that cannot
    be merged.
    """

    def __init__(self, base: Any, config: Config, trained: Mapping[str, torch.Tensor]) -> None:
        self.model = base
        self._adapters: list[Merging] = []
        if config.model.adapter:
            check_adapter(config.with_model(adapter_mode="merge").model, base.config)
            if not config.continues_adapter:
                self._add(starting_merging(base.config, config))

        def adapt(hollow: Any) -> Any:
            if config.model.adapter and config.continues_adapter:
                adapted = starting_adapter(hollow, config, config.model.adapter)
            else:
                assert config.lora is not None
                adapted = add_adapter(hollow, new_settings(config.lora))
            loaded = adapted.load_state_dict(trained, strict=False)  # the rest is loaded already
            assert not loaded.unexpected_keys, loaded.unexpected_keys
            return adapted

        names = list(trained)
        if config.model.adapter and config.continues_adapter:
            names += adapter_weights(config.model.adapter)
        self._add(Merging(base.config, getattr(torch, config.model.dtype), adapt, names))

    def _add(self, merging: Merging) -> None:
        if merging.unties:
            untie(self.model, gather_nothing)
        self._adapters.append(merging)

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, merged weight), rounded as in `adapter.merge_adapter`; call it once."""
        weights = dict(self.model.named_parameters())

        def merged(name: str, adapters: list[Merging]) -> torch.Tensor:
            if not adapters:
                return weights[name].detach()
            return adapters[-1].merged(name, lambda name: merged(name, adapters[:-1]))

        for name in weights:
            yield name, merged(name, self._adapters)
