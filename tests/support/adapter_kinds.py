"""Adapters of every kind for tiny models, as peft saves them, with weights that matter."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

CAUSAL = {"task_type": "CAUSAL_LM"}
TARGETS = CAUSAL | {"target_modules": ["q_proj", "down_proj"]}
Make = Callable[[], Any]  # -> peft's settings of an adapter


def lora(**settings: Any) -> Any:
    return peft.LoraConfig(**({"r": 4, "lora_alpha": 8} | TARGETS | settings))


# Features of LoRA, by the words of docs/models.md.
LORA_KINDS: dict[str, Make] = {
    "LoRA": lora,
    "rsLoRA": lambda: lora(use_rslora=True),
    "LoRA with rank_pattern and alpha_pattern": lambda: lora(
        rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3}
    ),
    "LoRA on the embeddings": lambda: lora(target_modules=["embed_tokens", "v_proj"]),
    "LoRA on the head": lambda: lora(target_modules=["lm_head", "v_proj"]),
    "DoRA": lambda: lora(use_dora=True),
    "LoRA and trained biases of the base": lambda: lora(bias="all"),
    "LoRA with biases of its own": lambda: lora(lora_bias=True),
    "LoRA and rows for some tokens": lambda: lora(trainable_token_indices=[5, 7, 40]),
    "LoRA and whole embeddings": lambda: lora(modules_to_save=["embed_tokens"]),
    "LoRA and a whole head": lambda: lora(modules_to_save=["lm_head"]),
    "LoRA and whole norms": lambda: lora(modules_to_save=["input_layernorm", "norm"]),
    "LoRA on parameters": lambda: lora(target_parameters=["v_proj.weight"]),
    "PiSSA": lambda: lora(init_lora_weights="pissa"),
    "aLoRA": lambda: lora(alora_invocation_tokens=[5, 7]),
}
# Other kinds, by peft's names.
OTHER_KINDS: dict[str, Make] = {
    "ADALORA": lambda: peft.AdaLoraConfig(total_step=10, **TARGETS),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **TARGETS),
    "C3A": lambda: peft.C3AConfig(block_size=16, **TARGETS),
    "DEFT": lambda: peft.DeftConfig(**TARGETS),
    "DELORA": lambda: peft.DeloraConfig(**TARGETS),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=20, **TARGETS),
    "GRALORA": lambda: peft.GraloraConfig(r=8, gralora_k=2, **TARGETS),
    "HIRA": lambda: peft.HiraConfig(**TARGETS),
    "HRA": lambda: peft.HRAConfig(**TARGETS),
    "IA3": lambda: peft.IA3Config(feedforward_modules=["down_proj"], **TARGETS),
    "LN_TUNING": lambda: peft.LNTuningConfig(**CAUSAL, target_modules=["input_layernorm", "norm"]),
    "LOHA": lambda: peft.LoHaConfig(r=4, **TARGETS),
    "LOKR": lambda: peft.LoKrConfig(r=4, **TARGETS),
    "MISS": lambda: peft.MissConfig(r=8, **TARGETS),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, **TARGETS),
    "PEANUT": lambda: peft.PeanutConfig(**TARGETS),
    "RANDLORA": lambda: peft.RandLoraConfig(**TARGETS),
    "ROAD": lambda: peft.RoadConfig(group_size=16, **TARGETS),
    "SHIRA": lambda: peft.ShiraConfig(r=2, **TARGETS),
    "TRAINABLE_TOKENS": lambda: peft.TrainableTokensConfig(
        token_indices=[5, 7, 40], target_modules=["embed_tokens"], **CAUSAL
    ),
    "UNILORA": lambda: peft.UniLoraConfig(**TARGETS),
    "VERA": lambda: peft.VeraConfig(r=8, **TARGETS),
    "WAVEFT": lambda: peft.WaveFTConfig(n_frequency=20, **TARGETS),
}
REFUSED_KINDS: dict[str, Make] = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL),
    "P_TUNING": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, **CAUSAL),
    "VBLORA": lambda: peft.VBLoRAConfig(vector_length=16, num_vectors=8, **TARGETS),
    "OSF": lambda: peft.OSFConfig(**TARGETS),
}
ALL_KINDS = LORA_KINDS | OTHER_KINDS | REFUSED_KINDS


def save_adapter(base: Path, folder: Path, settings: Any, *, embeddings: bool = False) -> Path:
    """Writes an adapter of PEFT's settings, all of whose trained weights have changed.

    With `embeddings` it holds those of the base too, changed, as peft stores them for new tokens.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if embeddings:
            model.get_input_embeddings().weight.data += 0.1
        adapted = peft.get_peft_model(model, settings)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.05 * torch.randn_like(parameter)
        adapted.save_pretrained(folder, save_embedding_layers=embeddings or "auto")
    return folder


def peft_model(base: Path, adapter: Path, *, is_trainable: bool = False) -> Any:
    """The adapter on its base by transformers and peft alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable).eval()
