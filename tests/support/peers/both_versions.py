"""Exports of every supported family, as a run would write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from helpers import tiny_model
from peers.small_tokenizers import MAKERS

from cpo_ds.export.folder import Export, write_folder
from cpo_ds.model.load import SUPPORTED_MODEL_TYPES, load_model_config

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
    bases = []
    for family in SUPPORTED_MODEL_TYPES:
        for number, kind in enumerate(ropes(family)):
            base = folder / f"{family}, {kind}"
            model_of(family, kind).save_pretrained(base)
            names = TOKENIZERS[family]
            MAKERS[names[number % len(names)]]().save_pretrained(base)
            bases.append(base)
    return bases


def export_model(base: Path, folder: Path) -> None:
    """Exports a model as it is."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.config = load_model_config(str(base))
    _write(base, folder, model, model.named_parameters())


def export_adapter(base: Path, folder: Path) -> None:
    """Exports an adapter on a base, with weights that are not the initial ones."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    adapted = peft.get_peft_model(model, lora)
    torch.manual_seed(1)
    trained = [(name, p) for name, p in adapted.named_parameters() if p.requires_grad]
    for _, parameter in trained:
        torch.nn.init.normal_(parameter, 0, 0.05)
    _write(base, folder, adapted, iter(trained))


def _write(base: Path, folder: Path, model: Any, weights: Iterator[Any]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    export = Export(model, tokenizer, str(base), "float32", "a card")
    write_folder(folder, export, ((name, weight.detach()) for name, weight in weights))
