"""Faults planted in an export just after its weights and settings are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from cpo_ds.export import folder as export_folder
from cpo_ds.export import portable

Tensors = dict[str, torch.Tensor]


def _change(file: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def _reweigh(file: Path, change: Callable[[Tensors], None]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def _swap(one: str, other: str) -> Callable[[Tensors], None]:
    def swap(weights: Tensors) -> None:
        weights[one], weights[other] = weights[other], weights[one]

    return swap


def _other_positions(values: dict[str, Any]) -> None:
    values["rope_parameters"]["rope_theta"] = values["rope_theta"] = 1000.0


def _other_letters(values: dict[str, Any]) -> None:
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["o"] = vocabulary["o"], vocabulary["a"]


Q, A, B = (
    "model.layers.{}.self_attn.q_proj.weight",
    "base_model.model.model.layers.{}.mlp.down_proj.lora_A.weight",
    "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight",
)
MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"

OF_MODELS: dict[str, Callable[[Path], None]] = {
    "other positions": lambda f: _change(f / "config.json", _other_positions),
    "a swapped weight": lambda f: _reweigh(f / MODEL, _swap(Q.format(0), Q.format(1))),
    "no head": lambda f: _reweigh(f / MODEL, lambda w: w.pop("lm_head.weight")),
    "a rounded weight": lambda f: _reweigh(
        f / MODEL, lambda w: w.update({Q.format(0): w[Q.format(0)].half().float()})
    ),
    "no settings": lambda f: (f / "config.json").unlink(),
}
OF_ADAPTERS: dict[str, Callable[[Path], None]] = {
    "another scale": lambda f: _change(f / "adapter_config.json", lambda v: v.update(lora_alpha=9)),
    "a swapped factor": lambda f: _reweigh(f / ADAPTER, _swap(A.format(0), A.format(1))),
    "no factor": lambda f: _reweigh(f / ADAPTER, lambda w: w.pop(B)),
}
OF_TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "other tokens": lambda f: _change(f / "tokenizer.json", _other_letters),
    "no end": lambda f: _change(f / "tokenizer_config.json", lambda v: v.pop("eos_token")),
}
FAULTS = OF_MODELS | OF_ADAPTERS | OF_TOKENIZERS


@contextmanager
def planted(fault: str | None) -> Iterator[None]:
    """Plants a fault in every export that is written until the `with` block ends."""

    def write_tokenizer(folder: Path, tokenizer: Any) -> None:
        portable.write_tokenizer(folder, tokenizer)
        if fault is not None:
            FAULTS[fault](folder)

    with mock.patch.object(export_folder, "write_tokenizer", write_tokenizer):
        yield
