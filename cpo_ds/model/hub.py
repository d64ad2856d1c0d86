"""Folders and Hugging Face names: what is said where something is not there, adapters' weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from peft.utils import load_peft_weights
from safetensors import SafetensorError

from cpo_ds.schema import UserError


def adapter_fingerprint(adapter: str) -> str:
    """16 hexadecimal digits that change with any weight of a LoRA adapter, wherever it lies.

    Raises `UserError` where there is none.
    """
    try:
        weights = load_peft_weights(adapter, device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise not_there("LoRA adapter", adapter, error) from None
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def not_there(what: str, name_or_path: str, error: Exception) -> UserError:
    """The error for a model, tokenizer or adapter that cannot be read or is not there."""
    if Path(name_or_path).is_dir():
        return UserError(f"the {what} in {name_or_path} cannot be read: {one_line(error)}")
    return UserError(
        f"there is no {what} {name_or_path}: no such folder here, and the Hugging Face hub does "
        f"not give it (check the name, log in with `hf auth login` if it is gated, or download it "
        f"and give its folder)."
    )


def one_line(error: Exception | str, limit: int = 300) -> str:
    """A library's message in one line, cut where it goes on and on."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
