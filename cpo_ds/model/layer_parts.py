"""Parts of a decoder layer in few passes over memory: norm, rotation, SwiGLU, LoRA's product.

Each part is a formula and the formula of its gradient, as pure functions of tensors. They run as
they are, or compiled by torch into one kernel each. What the gradient can compute from its inputs
again is not kept from the forward pass.

Shape suffixes: T tokens, H heads, D head size, E features, R rank of an adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

Formula = Callable[..., Any]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _norm(
    states_TE: torch.Tensor, weight_E: torch.Tensor, offset: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm (arXiv 1910.07467) times `weight + offset`, and each token's factor: [T, 1]."""
    wide_TE = _wide(states_TE)
    norm_T1 = torch.linalg.vector_norm(wide_TE, dim=-1, keepdim=True)
    factor_T1 = torch.rsqrt(norm_T1.square() / states_TE.shape[-1] + eps)
    normed_TE = (wide_TE * factor_T1).mul_(_wide(weight_E) + offset)
    return normed_TE.to(states_TE.dtype), factor_T1


def _norm_gradient(
    grad_TE: torch.Tensor,
    states_TE: torch.Tensor,
    weight_E: torch.Tensor,
    factor_T1: torch.Tensor,
    offset: float,
) -> torch.Tensor:
    """Gradient by the norm's input: f (w g) - x f^3 mean(w g x), f the factor."""
    weighted_TE = _wide(grad_TE) * (_wide(weight_E) + offset)
    wide_TE = _wide(states_TE)
    mean_T1 = (weighted_TE * wide_TE).sum(-1, keepdim=True) / states_TE.shape[-1]
    slope_T1 = mean_T1 * factor_T1.pow(3)
    return torch.addcmul(weighted_TE * factor_T1, wide_TE, slope_T1, value=-1).to(grad_TE.dtype)


def _norm_weight_gradient(
    grad_TE: torch.Tensor, states_TE: torch.Tensor, factor_T1: torch.Tensor
) -> torch.Tensor:
    """Gradient by the norm's weight: [E], float32 or better."""
    return (_wide(grad_TE) * _wide(states_TE)).mul_(factor_T1).sum(0)


def _rotated(
    query_THD: torch.Tensor, key_TKD: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions (arXiv 2104.09864): numbers n and n + D/2 of a head turn together."""
    half = cos_T1D.shape[-1] // 2
    cos, sin = cos_T1D[..., :half], sin_T1D[..., :half]

    def rotate(states: torch.Tensor) -> torch.Tensor:
        first, second = states[..., :half], states[..., half:]
        return torch.cat(
            (
                torch.addcmul(first * cos, second, sin, value=-1),
                torch.addcmul(second * cos, first, sin),
            ),
            -1,
        )

    return rotate(query_THD), rotate(key_TKD)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SwiGLU (arXiv 2002.05202) without its matrices: silu(gate) * up."""
    return F.silu(gate).mul_(up)


def _swiglu_gradient(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients by gate and by up."""
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def _add_kept(total: torch.Tensor, added: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Adds at the elements that dropout kept."""
    return torch.addcmul(total, added, mask.to(added.dtype))


def _kept(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The elements that dropout kept, not scaled up; zero for the others."""
    return states * mask.to(states.dtype)


@dataclass(frozen=True)
class Parts:
    """The formulas of a layer's parts, to be run as they are or compiled."""

    norm: Formula = _norm
    norm_gradient: Formula = _norm_gradient
    norm_weight_gradient: Formula = _norm_weight_gradient
    rotated: Formula = _rotated
    swiglu: Formula = _swiglu
    swiglu_gradient: Formula = _swiglu_gradient
    add_kept: Formula = _add_kept
    kept: Formula = _kept


EAGER = Parts()


@cache
def compiled_parts() -> Parts:
    """The formulas compiled for any number of tokens; each becomes a kernel when first used."""
    return Parts(
        **{name: torch.compile(formula, dynamic=True) for name, formula in vars(EAGER).items()}
    )


class _Norm(torch.autograd.Function):
    """RMSNorm over the last dimension; keeps its input and one number for each token."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight_E: torch.Tensor,
        offset: float,
        eps: float,
        parts: Parts,
    ) -> torch.Tensor:
        normed, factor = parts.norm(states, weight_E, offset, eps)
        ctx.save_for_backward(states, weight_E, factor)
        ctx.offset, ctx.parts = offset, parts
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        states, weight_E, factor = ctx.saved_tensors
        by_states = by_weight = None
        if ctx.needs_input_grad[0]:
            by_states = ctx.parts.norm_gradient(grad, states, weight_E, factor, ctx.offset)
        if ctx.needs_input_grad[1]:
            flat = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad, states, factor))
            by_weight = ctx.parts.norm_weight_gradient(*flat).to(weight_E.dtype)
        return by_states, by_weight, None, None, None


class _Rotation(torch.autograd.Function):
    """Turns queries and keys by their positions; keeps neither."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: torch.Tensor,
        key_TKD: torch.Tensor,
        cos_T1D: torch.Tensor,
        sin_T1D: torch.Tensor,
        parts: Parts,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos_T1D, sin_T1D)
        ctx.parts = parts
        return parts.rotated(query_THD, key_TKD, cos_T1D, sin_T1D)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos_T1D, sin_T1D = ctx.saved_tensors
        return *ctx.parts.rotated(*grads, cos_T1D, -sin_T1D), None, None, None


class _Swiglu(torch.autograd.Function):
    """silu(gate) * up; keeps both inputs and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, parts: Parts) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.parts = parts
        return parts.swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *ctx.parts.swiglu_gradient(*grads, *ctx.saved_tensors), None


class _LoraLinear(torch.autograd.Function):
    """A frozen linear layer with an adapter: x W^T + scale * dropout(x) A^T B^T.

    Products add to each other's results, so that no sum of two outputs is a pass of its own. Keeps
    its input and, with dropout, the mask.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,  # [..., E]
        weight_OE: torch.Tensor,
        bias_O: torch.Tensor | None,
        down_RE: torch.Tensor,  # LoRA's A
        up_OR: torch.Tensor,  # LoRA's B
        scale: float,
        dropout: float,
        parts: Parts,
    ) -> torch.Tensor:
        states_TE = states.flatten(0, -2)
        output_TO = F.linear(states_TE, weight_OE, bias_O)
        dropped_TE, mask_TE = states_TE, None
        if dropout:
            dropped_TE, mask_TE = torch.native_dropout(states_TE, dropout, True)
        inner_TR = dropped_TE @ down_RE.t()
        output_TO.addmm_(inner_TR, up_OR.t(), alpha=scale)
        ctx.save_for_backward(states, mask_TE, inner_TR, weight_OE, down_RE, up_OR)
        ctx.scale, ctx.scale_of_kept, ctx.parts = scale, scale / (1 - dropout), parts
        return output_TO.view(*states.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, mask_TE, inner_TR, weight_OE, down_RE, up_OR = ctx.saved_tensors
        grad_TO = grads[0].flatten(0, -2)
        # Of the adapter's matrices. Dropout's factor is applied to the narrow matrix alone.
        inner_grad_TR = (grad_TO @ up_OR).mul_(ctx.scale_of_kept)
        up_grad_OR = (grad_TO.t() @ inner_TR).mul_(ctx.scale)
        kept_TE = states.flatten(0, -2)
        if mask_TE is not None:
            kept_TE = ctx.parts.kept(kept_TE, mask_TE)
        down_grad_RE = inner_grad_TR.t() @ kept_TE
        # Of the input, through the frozen layer and through the adapter.
        by_states = None
        if ctx.needs_input_grad[0]:
            by_states = grad_TO @ weight_OE
            if mask_TE is None:
                by_states.addmm_(inner_grad_TR, down_RE)
            else:
                added_TE = inner_grad_TR @ down_RE
                by_states = ctx.parts.add_kept(by_states, added_TE, mask_TE)
            by_states = by_states.view(states.shape)
        return by_states, None, None, down_grad_RE, up_grad_OR, None, None, None


# The parts as functions of tensors; the last argument of each is `Parts`.
norm = _Norm.apply
rotate = _Rotation.apply
swiglu = _Swiglu.apply
lora_linear = _LoraLinear.apply


def made_again(
    tensor: torch.Tensor, make: Callable[[], torch.Tensor]
) -> AbstractContextManager[Any]:
    """Inside it, autograd does not keep `tensor`: the backward pass calls `make` for its values."""
    # The hooks live as long as the graph, so they must not refer to the tensor itself.
    storage, size = tensor.untyped_storage()._cdata, tensor.numel()

    def pack(kept: torch.Tensor) -> Any:
        is_it = kept.untyped_storage()._cdata == storage and kept.numel() == size
        return kept.shape if is_it and kept.is_contiguous() else kept

    def unpack(packed: Any) -> torch.Tensor:
        return packed if isinstance(packed, torch.Tensor) else make().view(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
