"""Exports of every supported family, as a run would write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from exported import write_export
from helpers import tiny_model
from peers.small_tokenizers import MAKERS

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.config import Config
from cpo_ds.export.folder import Export, make_export
from cpo_ds.export.shards import Named
from cpo_ds.model.load import SUPPORTED_MODEL_TYPES, load_model_config
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.recipe import parse_config

LONG = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}
BEFORE = {"original_max_position_embeddings": 64}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 8.0, "beta_fast": 16.0} | BEFORE,
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | BEFORE,
    "longrope": LONG | BEFORE,
}
# What 4.57 refuses by name, in files of its own too.
REFUSED = {("olmo2", kind) for kind in ("yarn", "llama3", "longrope")}
TOKENIZERS = {
    "cohere": ["Cohere"],
    "cohere2": ["Cohere"],
    "gemma": ["Gemma"],
    "gemma2": ["Gemma"],
    "gemma3_text": ["Gemma"],
    "granite": ["GPT-2"],
    "llama": ["Llama", "Llama, legacy", "Llama without BOS", "Llama with more", "Qwen2"],
    "mistral": ["Llama with more"],
    "olmo2": ["GPT-2"],
    "phi3": ["Llama"],
    "qwen2": ["Qwen2"],
    "qwen3": ["Qwen2"],
}


def ropes(family: str) -> list[str]:
    """Kinds of rotary positions that both versions know for a family."""
    kinds = ["default", "longrope"] if family == "phi3" else list(ROPES)
    return [kind for kind in kinds if (family, kind) not in REFUSED]


def model_of(family: str, kind: str) -> Any:
    """A tiny model with uncommon rotary positions."""
    rope = {"rope_type": kind, "rope_theta": 77.0} | ROPES[kind]
    settings: dict[str, Any] = {"vocab_size": 320, "pad_token_id": 0, "rope_parameters": rope}
    if family == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": 3333.0}
        settings["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    if family == "phi3":
        settings |= BEFORE
    return tiny_model(family, **settings)


def save_bases(folder: Path) -> list[Path]:
    """Saves every family with each kind of positions, as transformers 5 does."""
    return [
        save_base(folder, family, kind)
        for family in SUPPORTED_MODEL_TYPES
        for kind in ropes(family)
    ]


def save_base(folder: Path, family: str, kind: str = "default") -> Path:
    """Saves a model, with one of its family's tokenizers."""
    base = folder / f"{family}, {kind}"
    model_of(family, kind).save_pretrained(base)
    names = TOKENIZERS[family]
    MAKERS[names[ropes(family).index(kind) % len(names)]]().save_pretrained(base)
    return base


def export_model(base: Path, folder: Path) -> None:
    """Exports a model as it is."""
    write_export(folder, *export_of(base, load_model(base)))


def export_adapter(base: Path, folder: Path) -> None:
    """Exports an adapter on a base, with weights that are not the initial ones."""
    write_export(folder, *export_of(base, with_adapter(load_model(base))))


def load_model(base: Path) -> Any:
    """Loads a model as a run does."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config = load_model_config(str(base))
    return model


def with_adapter(model: Any) -> Any:
    """Adds an adapter that changes the model."""
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    adapted = peft.get_peft_model(model, lora)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.05)
    return adapted


def config_of(base: Path) -> Config:
    """The configuration of a run that trained a model; it names the folder by a relative path."""
    values = {
        "model": {"name_or_path": os.path.relpath(base), "dtype": "float32"},
        "data": {"format": "sample"},
        "output_dir": str(base / "run"),
    }
    return parse_config(values, "test")


def export_of(base: Path, model: Any) -> tuple[Export, Iterator[Named]]:
    """The export of a model with or without an adapter, and the weights in it."""
    manifest = Manifest(step=1, ranks=1, zero_stage=0)
    export = make_export(model, load_tokenizer(str(base)), config_of(base), manifest)
    is_adapter = isinstance(model, peft.PeftModel)
    named = model.named_parameters()
    return export, ((n, p.detach()) for n, p in named if p.requires_grad or not is_adapter)
