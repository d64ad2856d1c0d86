"""Names the parts of a training step to torch's profiler, by ranges around modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.profiler import record_function
from transformers import AttentionInterface

from cpo_ds.model.policy import PolicyModel

PREFIX = "part: "
MATRIX, ATTENTION, NORM, ROPE, SWIGLU, LORA, RESIDUAL, HEAD, OPTIMIZER, OTHER = (
    "matrix products", "attention", "norm", "RoPE and layout", "SwiGLU", "LoRA", "residuals",
    "head", "optimizer", "other",
)  # fmt: skip
PARTS = (MATRIX, ATTENTION, NORM, ROPE, SWIGLU, LORA, RESIDUAL, HEAD, OPTIMIZER, OTHER)


def in_range(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside a range of the profiler; the innermost range counts."""

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        # Recomputation leaves a forward pass by an exception, which must close the range too.
        with record_function(PREFIX + part):
            return function(*arguments, **named)

    return called


def part_of_module(name: str, module: nn.Module) -> str | None:
    """The part that a decoder's module belongs to; None if a module around it decides."""
    kind = type(module).__name__
    if hasattr(module, "base_layer"):
        return LORA
    if isinstance(module, nn.Linear):
        return None if ".lora_" in name else MATRIX
    for part, endings in _ENDINGS.items():
        if kind.endswith(endings):
            return part
    return None


_ENDINGS: dict[str, tuple[str, ...]] = {
    NORM: ("Norm",),
    ROPE: ("RotaryEmbedding", "Attention"),  # what attention does besides its products and kernel
    SWIGLU: ("MLP",),
    RESIDUAL: ("DecoderLayer",),
}


def mark_policy(policy: PolicyModel) -> None:
    """Puts a range around each module of a policy, around its head and its attention function."""
    for name, module in policy.causal_lm.get_decoder().named_modules():
        part = part_of_module(name, module)
        if part is not None:
            module.forward = in_range(part, module.forward)
    head: Any = policy.scoring_head
    head.forward = in_range(HEAD, head.forward)
    backend = policy.causal_lm.config._attn_implementation
    attend = AttentionInterface()[backend]
    AttentionInterface.register(backend, in_range(ATTENTION, attend))
