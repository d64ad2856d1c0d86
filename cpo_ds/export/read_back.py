"""Loads an export again and compares it with the model and tokenizer that were written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import load_peft_weights
from torch import nn

from cpo_ds.config import Config
from cpo_ds.errors import UserError, one_line
from cpo_ds.export.folder import Written, sum_of
from cpo_ds.export.shards import Named
from cpo_ds.model.load import load_causal_lm, load_model_config
from cpo_ds.model.offline import outline
from cpo_ds.model.tokenizer import read_tokenizer

# Texts that tokenizers are known to get wrong after they were saved.
_TEXTS = ("a house", "  two  spaces\n\n\tand 12,345 tabs ", "Straße 房子 😀 e\u0301", "")

# Settings that say how a model was loaded, not what it computes.
_OF_LOADING = {"architectures", "dtype", "torch_dtype", "transformers_version", "peft_version"}
_OF_LOADING |= {"inference_mode", "base_model_name_or_path", "quantization_config", "revision"}


def as_start(config: Config, folder: Path, *, is_adapter: bool) -> Config:
    """The configuration of a run that starts from an export, without a new adapter."""
    if is_adapter:
        started = config.with_model(adapter=str(folder), adapter_mode="continue")
    else:
        started = config.with_model(
            name_or_path=str(folder), adapter=None, adapter_mode="continue", quantization=None
        )
    return started.model_copy(update={"lora": None})


def difference(folder: Path, written: Written, config: Config) -> str | None:
    """Loads an export on the CPU; returns a sentence on what differs from `written`, or None.

    A full model's files are mapped into memory and read once. An adapter is loaded beside the
    outline of its base.
    """
    try:
        settings, weights = _load(folder, written, config)
        expected, loaded = _comparable(written.settings), _comparable(settings)
        for name, value in expected.items():
            if loaded.get(name) != value:
                return f"its {name} is {loaded.get(name)} after loading, but was {value}."
        sums = {name: sum_of(weight) for name, weight in weights if not weight.is_meta}
        names = (n for n in written.sums.keys() | sums.keys() if written.sums.get(n) != sums.get(n))
        if differing := sorted(names):
            return f"{len(differing)} of its weights differ after loading, such as {differing[0]}."
        return None
    except Exception as error:  # files that are wrong may fail anywhere, but tell no trace
        return f"it cannot be loaded again: {told(error)}"


def told(error: Exception) -> str:
    """The message of an error, with the error's kind if it is not meant for people."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + one_line(error)


def _load(folder: Path, written: Written, config: Config) -> tuple[Any, Iterator[Named]]:
    """Settings and weights of an export; those of an adapter's base are on the meta device."""
    start = as_start(config, folder, is_adapter=isinstance(written.settings, peft.PeftConfig))
    start = start.with_model(dtype=written.dtype)
    if start.continues_adapter:
        adapted = outline(start)
        _make_room(adapted)
        peft.set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
        return adapted.peft_config["default"], adapted.named_parameters()
    settings = load_model_config(str(folder))
    model = load_causal_lm(start.model, settings, "eager", torch.device("cpu"), False)
    return settings, model.named_parameters()


def _make_room(adapted: nn.Module) -> None:
    """Gives the adapter's parameters memory on the CPU, full of NaN until they are loaded."""
    for module in adapted.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                empty = torch.full_like(parameter, torch.nan, device="cpu")
                setattr(module, name, nn.Parameter(empty))


def _comparable(settings: Any) -> dict[str, Any]:
    """The settings that decide what a model computes, as JSON gives them back."""
    values = settings.to_dict()
    if isinstance(values.get("rope_parameters"), dict):
        values["rope_parameters"] = _without_old_name(values["rope_parameters"])
    kept = {k: v for k, v in values.items() if k not in _OF_LOADING and not k.startswith("_")}
    return json.loads(json.dumps(kept, sort_keys=True, default=_sorted_list))


def _without_old_name(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions without `type`, the old name of `rope_type`."""
    return {
        name: _without_old_name(value) if isinstance(value, dict) else value
        for name, value in rope.items()
        if name != "type"
    }


def _sorted_list(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def tokenizer_difference(folder: Path, tokenizer: Any) -> str | None:
    """Loads an export's tokenizer; returns a sentence on what it does in another way, or None."""
    try:
        loaded = read_tokenizer(str(folder))
    except UserError as error:
        return f"its tokenizer cannot be loaded again: {one_line(error)}"
    for text in _TEXTS:
        before, after = (each(text)["input_ids"] for each in (tokenizer, loaded))
        if before != after:
            return f"its tokenizer gives {after} for {text!r} after loading, but gave {before}."
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        if getattr(loaded, name) != getattr(tokenizer, name):
            return f"its tokenizer has another {name} after loading."
    return None
