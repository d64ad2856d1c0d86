"""Folders and Hugging Face names: what is said where something is not there, adapters' weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftConfig
from peft.utils import load_peft_weights
from safetensors import SafetensorError

from cpo_ds.errors import UserError, one_line


def adapter_fingerprint(adapter: str) -> str:
    """16 hexadecimal digits that change with any weight or setting of a LoRA adapter.

    Where it lies does not matter.

    Raises `UserError` where there is none.
    """
    weights = adapter_weights(adapter)
    try:
        settings = PeftConfig.from_pretrained(adapter).to_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise not_there("LoRA adapter", adapter, error) from None
    for name in ("base_model_name_or_path", "inference_mode", "revision", "peft_version"):
        settings.pop(name, None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_plain).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_weights(adapter: str) -> dict[str, torch.Tensor]:
    """An adapter's weights by their names, on the CPU. Raises `UserError` if there are none."""
    try:
        return load_peft_weights(adapter, device="cpu")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise not_there("LoRA adapter", adapter, error) from None


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, set) else str(value)


def not_there(what: str, name_or_path: str, error: Exception) -> UserError:
    """The error for a model, tokenizer or adapter that cannot be read or is not there."""
    if Path(name_or_path).is_dir():
        return UserError(f"the {what} in {name_or_path} cannot be read: {one_line(error)}")
    return UserError(
        f"there is no {what} {name_or_path}: no such folder here, and the Hugging Face hub does "
        f"not give it (check the name, log in with `hf auth login` if it is gated, or download it "
        f"and give its folder)."
    )
