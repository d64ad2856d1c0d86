"""Puts the parts of `layer_parts` into decoder layers of transformers and adapters of PEFT.

Modules keep their parameters, names and calls: each that is known gets another `forward`. Modules
of other kinds stay as they are, and a call that the parts do not serve goes to the forward pass
that the module had.

Shape suffixes: B rows of a batch (one, if packed), T tokens, H heads, D head size, E features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLayer
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cpo_ds.errors import UserError, one_line
from cpo_ds.model.layer_parts import (
    EAGER,
    Parts,
    compiled_parts,
    lora_linear,
    made_again,
    norm,
    rotate,
    swiglu,
)

# transformers' norms -> the number that they add to their weight.
_NORMS = {
    "LlamaRMSNorm": 0.0, "MistralRMSNorm": 0.0, "Qwen2RMSNorm": 0.0, "Qwen3RMSNorm": 0.0,
    "Phi3RMSNorm": 0.0, "GraniteRMSNorm": 0.0, "Olmo2RMSNorm": 0.0, "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0, "Gemma3RMSNorm": 1.0,
}  # fmt: skip
# Attention modules that rotate queries and keys right after their products.
_ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "GraniteAttention")
_MLP_LAYERS = {"gate_proj", "up_proj", "down_proj"}


def choose_parts(requested: str, device: torch.device) -> tuple[Parts | None, str]:
    """Returns the parts that `model.kernels` asks for, and a line for the log.

    None stands for the layers as transformers and PEFT write them. Raises `UserError` if torch
    cannot compile here and is asked to.
    """
    if requested == "transformers":
        return None, "kernels: transformers (as configured)"
    if requested == "eager":
        return EAGER, "kernels: eager (as configured)"
    if requested == "auto" and device.type == "cpu":
        return EAGER, "kernels: eager (compiled ones gain little on a CPU)"
    problem = why_not_compiled(device)
    if problem is None:
        reason = "the fewest passes over memory" if requested == "auto" else "as configured"
        return compiled_parts(), f"kernels: compiled ({reason})"
    if requested == "auto":
        return EAGER, f"kernels: eager (torch cannot compile here: {problem})"
    raise UserError(
        f"model.kernels is compiled, but torch cannot compile here: {problem}; install a C++ "
        "compiler (on a GPU also triton), or set model.kernels: eager."
    )


def why_not_compiled(device: torch.device) -> str | None:
    """Why torch cannot compile for a device, found by trying; None if it can."""
    try:
        torch.compile(torch.neg, dynamic=True)(torch.ones(2, device=device))
    except Exception as error:  # a missing compiler shows in many ways
        return one_line(error)
    return None


def fuse_layers(decoder: Any, parts: Parts, *, adapters: bool = True) -> None:
    """Gives the known modules of a decoder the forward passes below.

    Call it when the adapter, if any, is in place. `adapters=False` leaves its layers as they are.
    """
    for layer in [*decoder.layers, decoder.norm]:
        for module in layer.modules():
            name = _name_in_transformers(module)
            if name in _NORMS:
                _replace(module, _norm_forward, _NORMS[name], parts)
            elif name in _ATTENTIONS:
                _replace(module, _attention_forward, parts)
            elif _is_swiglu(module):
                _replace(module, _swiglu_forward, layer, parts)
            elif adapters and type(module) is LoraLayer and _is_plain_lora(module):
                _replace(module, _lora_forward, parts)


def _replace(module: Any, forward: Callable[..., Any], *arguments: Any) -> None:
    module.forward = partial(forward, module, *arguments)


def _name_in_transformers(module: nn.Module) -> str | None:
    """The name of a module's class if the class is from transformers' own models."""
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("transformers.models.") else None


def _is_swiglu(module: nn.Module) -> bool:
    """Whether a module is an MLP with SiLU of its gate, in three linear layers."""
    names = {name for name, _ in module.named_children()} - {"act_fn"}
    activation = type(getattr(module, "act_fn", None)).__name__
    return names == _MLP_LAYERS and activation in ("SiLU", "SiLUActivation")


def _is_plain_lora(module: Any) -> bool:
    """Whether an adapter is one product B A on a linear layer that is not split over ranks."""
    base = module.base_layer
    return (
        type(base) is nn.Linear
        and not hasattr(base.weight, "ds_id")  # ZeRO-3 gathers a weight for its own module's call
        and not any(parameter.requires_grad for parameter in base.parameters())
        and list(module.lora_A) == ["default"]
        and not module.lora_variant
        and module.lora_B["default"].bias is None
    )


def _norm_forward(module: Any, offset: float, parts: Parts, states: torch.Tensor) -> torch.Tensor:
    if module.weight.dtype != states.dtype:
        return type(module).forward(module, states)
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return norm(states, module.weight, offset, eps, parts)


def _attention_forward(
    module: Any,
    parts: Parts,
    hidden_states: torch.Tensor,  # [B, T, E]
    position_embeddings: tuple[torch.Tensor, torch.Tensor],  # [B or 1, T, D] each
    attention_mask: torch.Tensor | None = None,
    past_key_values: Any = None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    attend = ALL_ATTENTION_FUNCTIONS.get(module.config._attn_implementation)
    turns_whole_heads = position_embeddings[0].shape[-1] == module.head_dim
    if attend is None or past_key_values is not None or not turns_whole_heads:
        return type(module).forward(
            module, hidden_states, position_embeddings, attention_mask, past_key_values, **arguments
        )
    heads = (*hidden_states.shape[:-1], -1, module.head_dim)
    query_BTHD = module.q_proj(hidden_states).view(heads)
    key_BTKD = module.k_proj(hidden_states).view(heads)
    value_BTKD = module.v_proj(hidden_states).view(heads)
    cos, sin = (of_axis.unsqueeze(-2) for of_axis in position_embeddings)
    query_BTHD, key_BTKD = rotate(query_BTHD, key_BTKD, cos, sin, parts)
    output, weights = attend(
        module,
        *(states.transpose(1, 2) for states in (query_BTHD, key_BTKD, value_BTKD)),
        attention_mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=_window(module),
        **arguments,
    )
    return module.o_proj(output.reshape(*heads[:-2], -1)), weights


def _window(module: Any) -> int | None:
    """The most distant key that a query sees, counted from 1; None for all."""
    if hasattr(module, "sliding_window"):  # Qwen2 has it in some layers only
        return module.sliding_window
    is_mistral = type(module).__name__ == "MistralAttention"
    return module.config.sliding_window if is_mistral else None


def _swiglu_forward(module: Any, layer: Any, parts: Parts, states: torch.Tensor) -> torch.Tensor:
    gate, up = module.gate_proj(states), module.up_proj(states)
    inner = swiglu(gate, up, parts)
    if not torch.is_grad_enabled() or getattr(layer, "gradient_checkpointing", False):
        return module.down_proj(inner)
    # An adapter, or a trained matrix, needs the input of this product in the backward pass.
    kept_gate, kept_up = gate.detach(), up.detach()
    with made_again(inner, lambda: parts.swiglu(kept_gate, kept_up)):
        return module.down_proj(inner)


def _lora_forward(
    module: Any, parts: Parts, states: torch.Tensor, **arguments: Any
) -> torch.Tensor:
    base, down = module.base_layer, module.lora_A["default"]
    is_active = not module.disable_adapters and module.active_adapters == ["default"]
    is_one_dtype = base.weight.dtype == down.weight.dtype == states.dtype
    if not is_active or module.merged or not is_one_dtype or arguments:
        return type(module).forward(module, states, **arguments)
    dropout = module.lora_dropout["default"]  # nn.Identity without dropout
    rate = dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0
    return lora_linear(
        states, base.weight, base.bias, down.weight, module.lora_B["default"].weight,
        module.scaling["default"], rate, parts,
    )  # fmt: skip
