"""Refuses adapters that training or merging would get wrong, before a model is loaded."""

from __future__ import annotations

import json
import re
import warnings
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from safetensors import SafetensorError
from torch import nn
from transformers.utils import cached_file

from cpo_ds.config import ModelConfig
from cpo_ds.errors import UserError, one_line
from cpo_ds.model.hub import adapter_weights, unavailable
from cpo_ds.model.merging import base_name, hollow_model, model_on_meta, unties, whole_models
from cpo_ds.storage.hub_names import check_folder_or_name

# Kinds whose merge into weights was compared with the adapter itself, each one tested.
MERGED_KINDS = (
    "ADALORA", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3",
    "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "PEANUT", "RANDLORA", "ROAD", "SHIRA",
    "TRAINABLE_TOKENS", "UNILORA", "VERA", "WAVEFT",
)  # fmt: skip
# Kinds that change the model's input or its states, which no merge into weights can express.
_UNMERGEABLE_KINDS = (
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LILY", "MULTITASK_PROMPT_TUNING", "POLY",
    "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "SHADOW", "XLORA",
)  # fmt: skip
# Settings of LoRA that are served, and settings that matter only when an adapter is made.
_SERVED_SETTINGS = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern",
    "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "fan_in_fan_out", "runtime_config", "ensure_weight_tying", "init_lora_weights", "loftq_config",
    "eva_config", "use_dora", "lora_bias", "bias", "trainable_token_indices", "modules_to_save",
}  # fmt: skip
# Settings that are merged, but not trained further.
_MERGED_SETTINGS = {"target_parameters"}
# Values of init_lora_weights that leave the base as it is. With any other, peft changes the base
# when it loads the adapter.
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal", "eva")
# Some other settings, and the kind of update that each stands for.
_UPDATE_KINDS = {
    "alora_invocation_tokens": "updates from some tokens on",
    "layer_replication": "layers used several times",
    "target_parameters": "updates of parameters that are no layers",
}
_ROWS_OF_HEAD = "lm_head.token_adapter.trainable_tokens_delta"
_MERGE_FIRST = (
    "Merge it into its base by peft (merge_and_unload, save_pretrained) and give that model as "
    "model.name_or_path."
)
_MERGE_HERE = "Set model.adapter_mode: merge, which serves it."


def check_adapter(model: ModelConfig, model_config: Any) -> None:
    """Raises `UserError` unless the starting adapter is served exactly: continued, or merged.

    It reads the adapter's files and the base model's configuration, no weights of the base.
    """
    adapter, mode = model.adapter, model.adapter_mode
    assert adapter is not None
    settings = _settings_of(adapter)
    kind = str(settings.get("peft_type", "")).upper()
    _check_kind(adapter, kind, mode)
    if kind == "LORA":
        _check_lora(adapter, settings, mode)
    _check_known(adapter, kind, settings)
    if mode == "continue" and model.quantization:
        _check_plain(adapter, settings)
    adapted = _outlined(adapter, kind, model_config)
    _check_nesting(adapted, adapter)
    _check_embeddings(adapted, adapter, mode)
    if mode == "merge":
        _check_biases(adapted, adapter)


def merge_unties(adapter: str, model_config: Any) -> bool:
    """Whether a merge of a checked adapter gives tied embeddings and head weights of their own."""
    if not model_config.tie_word_embeddings:
        return False
    kind = str(_settings_of(adapter)["peft_type"]).upper()
    return unties(_outlined(adapter, kind, model_config))


def _check_plain(adapter: str, settings: dict[str, Any]) -> None:
    """Raises `UserError` for an adapter that reads or copies weights of a base in 4 bits."""
    for name in ("use_dora", "modules_to_save", "trainable_token_indices"):
        if settings.get(name):
            raise UserError(
                f"the adapter {adapter} sets {name}, which is not exact on a base in 4 bits; leave "
                "model.quantization out."
            )


def _check_kind(adapter: str, kind: str, mode: str) -> None:
    if kind in _UNMERGEABLE_KINDS:
        raise UserError(
            f"the adapter {adapter} is of the kind {kind}, which changes no weights, so no model "
            "can be trained or exported with it; start from the base alone."
        )
    if kind not in MERGED_KINDS:
        problem = f"is of the kind {kind}" if kind else "does not name its kind (peft_type)"
        raise UserError(f"the adapter {adapter} {problem}, which is not served. {_MERGE_FIRST}")
    if mode == "continue" and kind != "LORA":
        raise UserError(
            f"the adapter {adapter} is of the kind {kind}, and only LORA can be trained further. "
            f"{_MERGE_HERE}"
        )


def _check_known(adapter: str, kind: str, settings: dict[str, Any]) -> None:
    """Raises `UserError` for a setting that this peft does not know and would ignore."""
    known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)])}
    unknown = [name for name, value in settings.items() if name not in known and value]
    if unknown:
        raise UserError(
            f"the adapter {adapter} sets {unknown[0]}, which this peft ({peft.__version__}) "
            f"ignores. {_MERGE_FIRST}"
        )


def _check_lora(adapter: str, settings: dict[str, Any], mode: str) -> None:
    """Raises `UserError` for a setting of LoRA that is not served."""
    defaults = peft.LoraConfig().to_dict()
    for name, value in settings.items():
        if name == "init_lora_weights" and value not in _PLAIN_INITIALIZATIONS:
            raise UserError(
                f"the adapter {adapter} sets {name} to {value!r}, with which peft changes the "
                f"base. {_MERGE_FIRST}"
            )
        if name in _SERVED_SETTINGS or not value or value == defaults.get(name, value):
            continue
        kind = _UPDATE_KINDS.get(name, "another kind of update")
        if name not in _MERGED_SETTINGS:
            raise UserError(
                f"the adapter {adapter} sets {name} ({kind}), which is not served. {_MERGE_FIRST}"
            )
        if mode == "continue":
            raise UserError(
                f"the adapter {adapter} sets {name} ({kind}), which is not trained further. "
                f"{_MERGE_HERE}"
            )


def _outlined(adapter: str, kind: str, model_config: Any) -> Any:
    """The model without weights, with the adapter as peft puts it in.

    Raises `UserError` if the adapter does not fit the model, or if its files lack weights or hold
    weights that peft would leave out.
    """
    # LoRA needs no memory on the meta device. Other kinds make numbers that peft computes with.
    on_meta = kind == "LORA"
    names = list(adapter_weights(adapter))
    make = model_on_meta if on_meta else partial(hollow_model, filled=set(map(base_name, names)))
    try:
        settings = peft.PeftConfig.from_pretrained(adapter)
        with whole_models(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that stay on the meta device
            model = make(model_config, torch.float32)
            with torch.device("meta") if on_meta else nullcontext():
                adapted: Any = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
            loaded = adapted.load_adapter(adapter, "default", torch_device="cpu")
    except KeyError as error:  # peft looks up whole layers
        raise _lacks(adapter, str(error.args[0])) from None
    except (OSError, ValueError, TypeError, RuntimeError, re.error, SafetensorError) as error:
        raise UserError(
            f"the adapter {adapter} does not fit this model, or cannot be read: {one_line(error)}"
        ) from None
    if loaded.missing_keys:
        raise _lacks(adapter, loaded.missing_keys[0])
    copies = _copies(names, model_config)
    unknown = [name for name in loaded.unexpected_keys if name not in copies]
    if unknown:
        raise UserError(
            f"the adapter {adapter} holds {len(unknown)} weights that peft would leave out, since "
            f"this model has none of that name ({unknown[0]}...); "
            "get the model that it was trained on, or remove them from its file."
        )
    return adapted


def _copies(names: list[str], model_config: Any) -> set[str]:
    """Names of weights in an adapter's file that peft stores twice, and reads once."""
    copies = {
        name for name in names if name.replace(".modules_to_save.", ".") in set(names) - {name}
    }
    if model_config.tie_word_embeddings:  # rows of embeddings are rows of the head too
        copies |= {name for name in names if name.endswith(_ROWS_OF_HEAD)}
    return copies


def _lacks(adapter: str, name: str) -> UserError:
    return UserError(
        f"the LoRA adapter {adapter} does not hold all of its weights for this model: there is no "
        f"{name}"
    )


def _is_changed(module: nn.Module) -> bool:
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _has_rows(module: nn.Module) -> bool:
    return isinstance(module, TrainableTokensLayer | TrainableTokensWrapper)


def _check_nesting(adapted: Any, adapter: str) -> None:
    """Raises `UserError` for a layer that is stored whole and by rows, of which peft merges one."""
    for name, module in adapted.named_modules():
        inner = [part for part in module.modules() if part is not module]
        if isinstance(module, AuxiliaryTrainingWrapper) and any(map(_is_wrapper, inner)):
            raise UserError(
                f"the adapter {adapter} changes {base_name(name)} by modules_to_save and by "
                "trainable_token_indices, which peft cannot merge; make an adapter with one of the "
                "two."
            )


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, AuxiliaryTrainingWrapper)


def _check_embeddings(adapted: Any, adapter: str, mode: str) -> None:
    """Raises `UserError` if the head, or a weight that is tied to it, would be changed wrongly."""
    base = adapted.get_base_model()
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    pair = (embeddings, head)
    if base.config.tie_word_embeddings:
        layers = [module for module in pair if isinstance(module, BaseTunerLayer)]
        if any(not _has_rows(module) for module in layers) or len(set(map(_has_rows, pair))) > 1:
            raise UserError(
                f"the adapter {adapter} changes embeddings or head alone, which in this model are "
                "one weight: by peft it gives other numbers merged than not merged. Make an "
                "adapter that leaves embed_tokens and lm_head out of target_modules."
            )
    if mode == "continue" and _is_changed(head):
        raise UserError(
            f"the adapter {adapter} changes lm_head, which is applied outside its module here and "
            f"cannot be trained further as part of an adapter. {_MERGE_HERE}"
        )


def _check_biases(adapted: Any, adapter: str) -> None:
    """Raises `UserError` for a bias that peft cannot merge."""
    for module in adapted.modules():
        if not isinstance(module, LoraLayer) or not any(module.lora_bias.values()):
            continue
        if getattr(module.get_base_layer(), "bias", None) is None:
            raise UserError(
                f"the adapter {adapter} sets lora_bias, and peft cannot merge a bias into a layer "
                "of this model that has none. It can be trained further (model.adapter_mode: "
                "continue), and exported as an adapter."
            )


def _settings_of(adapter: str) -> dict[str, Any]:
    """An adapter's settings from its file, unknown ones included, which peft would leave out."""
    check_folder_or_name("LoRA adapter", adapter)
    try:
        file = cached_file(adapter, "adapter_config.json")
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"{file} is no JSON object")
        return settings
    except (OSError, ValueError) as error:
        raise unavailable("LoRA adapter", adapter, error) from None
