"""A frozen base in 4 bits under a LoRA adapter (QLoRA, arXiv 2305.14314), by bitsandbytes.

Every linear layer but the head keeps its weight in nf4, two weights a byte, and a scale for each
block of 64, itself in 8 bits (double quantization). A product restores the weight in `model.dtype`
first, so that gradients by activations and by the adapter are those of the restored weights.
Embeddings, norms and the head are in `model.dtype`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import transformers
from torch import nn

from cpo_ds.config import ModelConfig
from cpo_ds.errors import UserError

# A weight, its part of a block's scale of 8 bits, and that of the scale's own, one for 256 blocks.
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


def quantizer(model: ModelConfig) -> Any:
    """transformers' settings of the recipe's quantization; None without one.

    Raises `UserError` if bitsandbytes is not installed.
    """
    if model.quantization is None:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization: {model.quantization} needs bitsandbytes, which is not installed; "
            "install it by: pip install 'cpo-ds[quantization]'"
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
        bnb_4bit_use_double_quant=True,
    )


def prepare_quantized(causal_lm: nn.Module) -> None:
    """Makes the quantized layers fit to train beside an adapter, and to leave out of checkpoints.

    A model without such layers is left as it is.
    """
    for module in causal_lm.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        # In evaluation bitsandbytes would repack weights for a CPU's bfloat16 instructions, for
        # good: products would be rounded to bfloat16, and later passes would have no gradient.
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        module.register_state_dict_post_hook(_drop_scales)


def _drop_scales(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Removes scales from a state dict: like the weights that they belong to, they are frozen."""
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]


def quantized_names(causal_lm: Any) -> frozenset[str]:
    """Names of the weights that `quantizer` would keep in 4 bits; the model may have an adapter."""
    head = causal_lm.get_output_embeddings()
    return frozenset(
        f"{name}.weight"
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head and ".lora_" not in name
    )
