"""A run's model outside training: its outline without weights, or merged weight by weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from peft.tuners.lora import LoraLayer

from cpo_ds.config import Config
from cpo_ds.model.adapter import add_adapter, new_settings, starting_settings, with_adapter
from cpo_ds.model.file_checks import check_plain_lora
from cpo_ds.model.load import load_causal_lm, load_model_config


def outline(config: Config) -> Any:
    """The model that a run trains, its trained adapter included, on the meta device.

    It holds names, shapes and settings, no weights. Raises `UserError` if the base, or the adapter
    that the run continues, cannot be read.
    """
    model_config = load_model_config(config.model.name_or_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            model_config, dtype=getattr(torch, config.model.dtype)
        )
        model.generation_config = _generation_config(config.model.name_or_path, model)
        if config.continues_adapter:
            assert config.model.adapter is not None
            check_plain_lora(config.model.adapter)
            settings = starting_settings(config, config.model.adapter)
        elif config.lora is not None:
            settings = new_settings(config.lora)
        else:
            return model
        outlined = add_adapter(model, settings)
        # peft casts an adapter to its base layer's precision only if the model has weights.
        for parameter in outlined.parameters():
            parameter.data = parameter.data.to(model.dtype)
        return outlined


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
    mapped files would copy all of them into memory.
    """

    def __init__(self, base: Any, config: Config, trained: Mapping[str, torch.Tensor]) -> None:
        self._layers: dict[int, list[LoraLayer]] = {}
        adapted = with_adapter(base, config, self._remove_adapter)
        loaded = adapted.load_state_dict(trained, strict=False)  # the base is loaded already
        assert not loaded.unexpected_keys, loaded.unexpected_keys
        self.model = self._remove_adapter(adapted)

    def _remove_adapter(self, adapted: Any) -> Any:
        """Keeps the adapter's layers by the weight that they change; returns the plain model."""
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                weight = module.get_base_layer().weight
                self._layers.setdefault(id(weight), []).append(module)
        return adapted.unload()

    @torch.no_grad()
    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, merged weight), rounded as in `adapter.merge_adapter`."""
        for name, parameter in self.model.named_parameters():
            weight = parameter.detach()
            for layer in self._layers.get(id(parameter), ()):
                weight = weight + layer.get_delta_weight("default").to(weight.dtype)
            yield name, weight
