"""Adapters' weights by folder or Hugging Face name, and the error for missing files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub.errors import HTTPError  # of the HTTP library: the hub does not answer
from peft import PeftConfig
from peft.utils import load_peft_weights
from safetensors import SafetensorError

from cpo_ds.errors import UserError, one_line
from cpo_ds.storage.hub_names import check_folder_or_name, why_not_provided


def adapter_fingerprint(adapter: str) -> str:
    """16 hexadecimal digits that change with any weight or setting of a LoRA adapter.

    The same adapter in another folder has the same fingerprint. Raises `UserError` if it cannot be
    read.
    """
    weights = adapter_weights(adapter)
    try:
        settings = PeftConfig.from_pretrained(adapter).to_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unavailable("LoRA adapter", adapter, error) from None
    # These settings name the base and tell how the adapter was saved; they do not change it.
    for name in ("base_model_name_or_path", "inference_mode", "revision", "peft_version"):
        settings.pop(name, None)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_plain).encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def adapter_weights(adapter: str) -> dict[str, torch.Tensor]:
    """An adapter's weights by name, on the CPU. Raises `UserError` if they cannot be read."""
    check_folder_or_name("LoRA adapter", adapter)
    try:
        return load_peft_weights(adapter, device="cpu")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, HTTPError) as error:
        raise unavailable("LoRA adapter", adapter, error) from None


def _plain(value: object) -> object:
    """A setting in a form that JSON can hold, the same for equal sets."""
    return sorted(value) if isinstance(value, set) else str(value)


def unavailable(kind: str, name_or_path: str, error: Exception) -> UserError:
    """The error for a model, tokenizer or adapter (`kind`) that is missing or cannot be read."""
    if Path(name_or_path).is_dir():
        return UserError(f"the {kind} in {name_or_path} cannot be read: {one_line(error)}")
    reason = why_not_provided(error)
    return UserError(f"there is no {kind} {name_or_path}: there is no such folder, and {reason}.")
