"""Merges an adapter of any kind into weights, one module at a time, by peft's own arithmetic.

The adapter is loaded onto a hollow model: one that has all names and shapes, but no weights of its
own. A module's weights are put in just before peft merges the adapter's layer into them. So it does
not matter how the real model keeps its weights: whole, split over ranks, or in mapped files.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from peft import PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.integrations import deepspeed as integration

Read = Callable[[str], torch.Tensor]  # name of a base weight -> its value


def model_on_meta(model_config: Any, dtype: torch.dtype) -> Any:
    """A model on the meta device, without any weights."""
    settings = copy.deepcopy(model_config)
    settings._attn_implementation = "eager"
    with whole_models(), torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(settings, dtype=dtype)


def hollow_model(model_config: Any, dtype: torch.dtype, filled: Collection[str] = ()) -> Any:
    """A model on the CPU whose weights are zeros that take no memory; tied weights stay tied.

    The weights named in `filled` have memory, so that an adapter's file can replace them.
    """
    model = model_on_meta(model_config, dtype)
    named = model.named_parameters(remove_duplicate=False)
    is_filled = {parameter for name, parameter in named if name in filled}
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                zeros = _hollow(parameter)
                zeros = zeros.contiguous() if parameter in is_filled else zeros
                made[parameter] = nn.Parameter(zeros, requires_grad=False)
            setattr(module, name, made[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return model


def _hollow(weight: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=weight.dtype).expand(weight.shape)


@contextmanager
def whole_models() -> Iterator[None]:
    """Makes models and adapters whole inside a `with` block, even while ZeRO-3 splits others."""
    keep = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = keep


_WRAPPED = re.compile(r"\.((token_adapter\.)?base_layer|original_module)\.")


def base_name(name: str) -> str:
    """The base model's name of a weight that a PEFT model, or an adapter's file, calls `name`."""
    return _WRAPPED.sub(".", name.removeprefix("base_model.model."))


def unties(adapted: Any) -> bool:
    """Whether a merge gives tied embeddings and head weights of their own, as peft does it."""
    base = adapted.get_base_model()
    if not base.config.tie_word_embeddings:
        return False
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    return _merged_module(embeddings).weight is not _merged_module(head).weight


def _merged_module(module: Any) -> Any:
    """The module that stays when an adapter is merged and removed."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.modules_to_save[module.active_adapters[0]]
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


class Merging:
    """An adapter that is merged into weights while they are read, each module once.

    `adapt` adds the adapter, with its weights, to the hollow model that it is given. `names` are
    those of its weights; a weight of the base among them replaces that of the base.
    """

    def __init__(
        self,
        model_config: Any,
        dtype: torch.dtype,
        adapt: Callable[[Any], Any],
        names: Iterable[str],
    ) -> None:
        names = list(names)
        hollow = hollow_model(model_config, dtype, {base_name(name) for name in names})
        self._weights = dict(hollow.named_parameters(remove_duplicate=False))
        with whole_models():
            self._adapted = adapt(hollow)
        self.unties = unties(self._adapted)
        # Layers of other kinds have tensors that do not follow them to a GPU.
        self._follows_weights = self._adapted.peft_config["default"].peft_type == PeftType.LORA
        # Weights of the base that the adapter replaces. Those of whole layers have other names.
        loaded = self._adapted.state_dict().keys() & names
        replaced = {base_name(name) for name in loaded} & self._weights.keys()
        self._replaced = {name: self._weights[name].data for name in replaced}
        # Layers of the adapter by the base's name of the module; those inside others go with them.
        self._layers: dict[str, Any] = {}
        for name, module in self._adapted.get_base_model().named_modules():
            is_layer = isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
            if is_layer and self._layer_of(name) is None:
                self._layers[name] = module
        self._merged: dict[str, torch.Tensor] = {}

    def _layer_of(self, name: str) -> str | None:
        parents = name.split(".")
        prefixes = (".".join(parents[:end]) for end in range(1, len(parents)))
        return next((prefix for prefix in prefixes if prefix in self._layers), None)

    def changed(self) -> list[list[str]]:
        """Names of the weights that the adapter changes, in groups that are merged together."""
        groups = [
            [name for name in self._weights if name.startswith(f"{layer}.")]
            for layer in self._layers
        ]
        return groups + [[name] for name in self._replaced if self._layer_of(name) is None]

    @torch.no_grad()
    def merged(self, name: str, read: Read) -> torch.Tensor:
        """The value of a base weight after the merge; `read` gives values before it, by name."""
        layer = self._layer_of(name)
        if name not in self._merged:
            if layer is None:
                return self._replaced[name] if name in self._replaced else read(name)
            self._merge(layer, read)
        return self._merged.pop(name)

    def _merge(self, layer: str, read: Read) -> None:
        """Merges a layer into its module's weights, which are then waiting in `_merged`."""
        module = self._layers[layer]
        names = [name for name in self._weights if name.startswith(f"{layer}.")]
        for name in names:
            weight = read(name)
            device = weight.device if self._follows_weights else torch.device("cpu")
            # A copy, since peft may change it in place.
            self._weights[name].data = self._replaced.get(name, weight).to(device, copy=True)
        module.to(device)
        if hasattr(module, "unload_and_optionally_merge_module"):
            plain = module.unload_and_optionally_merge_module(
                merge=True, safe_merge=False, adapter_names=None
            )
        else:
            module.merge()
            plain = module.get_base_layer()
        self._merged |= {f"{layer}.{name}": p.data for name, p in plain.named_parameters()}
        for name in names:
            self._weights[name].data = _hollow(self._weights[name])
