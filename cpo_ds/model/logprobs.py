"""Hidden states + head weight -> log-prob of each scored token, a chunk of logits at a time.

For a token with logits z = W h the gradient of its log-prob is d log p_t / d z = onehot(t) - p. Its
product with W is an [S, hidden] matrix that does not depend on the loss. With a frozen head (LoRA)
it is computed in the forward pass, while the logits exist: the backward pass needs neither logits
nor head. With a trained head the backward pass recomputes the logits, except those of the last
chunk, whose gradient is kept. No more than one chunk of logits ever exists.

Shape suffixes: S scored tokens, C of them in a chunk, E hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class HeadTransform:
    """The function that a model applies to its head's output z, and the size of a chunk.

    It is `scale * z`, or `softcap * tanh(scale * z / softcap)` with a `softcap`.
    """

    scale: float = 1.0
    softcap: float | None = None
    chunk_tokens: int | None = None  # None: by `chunk_tokens`


def chunk_tokens(vocabulary: int, *, trained: bool) -> int:
    """Scored tokens in a chunk of logits: a multiple of 128, from 512 to 2048.

    Each chunk reads the head's weight, and if that is trained also reads and writes the sum of its
    gradient. So a chunk's float32 logits fill 64 MiB, or 256 MiB with a trained head.
    """
    size = 2**28 if trained else 2**26
    return min(2048, max(512, size // (4 * vocabulary) // 128 * 128))


def token_logps(
    hidden_SE: torch.Tensor,
    weight_VE: torch.Tensor,
    targets_S: torch.Tensor,
    transform: HeadTransform,
) -> torch.Tensor:
    """Log-prob of each target under its hidden state: [S], float32 (float64 for float64 input)."""
    if not torch.is_grad_enabled():  # `forward` would still see inputs that require gradients
        hidden_SE, weight_VE = hidden_SE.detach(), weight_VE.detach()
    return _TokenLogps.apply(hidden_SE, weight_VE, targets_S, transform)


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SE: torch.Tensor,
        weight_VE: torch.Tensor,
        targets_S: torch.Tensor,
        transform: HeadTransform,
    ) -> torch.Tensor:
        # Frozen head: `direction_SE` becomes the gradient of -log p by hidden states. Trained head:
        # the last chunk's gradient is kept, since the backward pass begins with that chunk.
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        direction_SE = torch.empty_like(hidden_SE) if needs_hidden and not needs_weight else None
        logps = []
        ctx.last_descent_CV = None
        size = transform.chunk_tokens or chunk_tokens(len(weight_VE), trained=needs_weight)
        ctx.chunks = _chunks(len(targets_S), size)
        for chunk in ctx.chunks:
            logps_CV, slope_CV = _chunk_logps(hidden_SE[chunk], weight_VE, transform)
            logps.append(logps_CV.gather(-1, targets_S[chunk, None])[:, 0])
            if direction_SE is not None:
                descent_CV = _descent(logps_CV, slope_CV, targets_S[chunk], transform)
                torch.mm(descent_CV.to(weight_VE.dtype), weight_VE, out=direction_SE[chunk])
            elif needs_weight and chunk.stop == len(targets_S):
                ctx.last_descent_CV = _descent(logps_CV, slope_CV, targets_S[chunk], transform)
        # Keep no more than the backward pass needs.
        ctx.transform = transform
        ctx.head_is_trained = needs_weight
        if needs_weight:
            ctx.save_for_backward(hidden_SE, weight_VE, targets_S)
        elif direction_SE is not None:
            ctx.save_for_backward(direction_SE)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_S,) = grads
        if not ctx.head_is_trained:
            (direction_SE,) = ctx.saved_tensors
            grad_SE = (-grad_S[:, None] * direction_SE).to(direction_SE.dtype)
            return grad_SE, None, None, None
        hidden_SE, weight_VE, targets_S = ctx.saved_tensors
        grad_hidden_SE = torch.empty_like(hidden_SE)
        grad_weight_VE = torch.zeros_like(weight_VE, dtype=grad_S.dtype)
        for chunk in reversed(ctx.chunks):
            # The gradient that the forward pass kept is used once; later it is computed again.
            grad_CV, ctx.last_descent_CV = ctx.last_descent_CV, None
            if grad_CV is None:
                logps_CV, slope_CV = _chunk_logps(hidden_SE[chunk], weight_VE, ctx.transform)
                grad_CV = _descent(logps_CV, slope_CV, targets_S[chunk], ctx.transform)
                del logps_CV
            grad_CV = grad_CV.mul_(-grad_S[chunk, None]).to(weight_VE.dtype)
            torch.mm(grad_CV, weight_VE, out=grad_hidden_SE[chunk])
            _add_product(grad_weight_VE, grad_CV, hidden_SE[chunk])
        return grad_hidden_SE, grad_weight_VE.to(weight_VE.dtype), None, None


def _chunks(total: int, size: int) -> list[slice]:
    """Slices of `range(total)`, each `size` long except the first, which may be shorter."""
    starts = range(total - size, -size, -size)
    return [slice(max(0, start), start + size) for start in reversed(starts)]


def _chunk_logps(
    hidden_CE: torch.Tensor, weight_VE: torch.Tensor, transform: HeadTransform
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs of the whole vocabulary, [C, V], and the slope of soft-capping, if any."""
    logits_CV, slope_CV = head_logits(hidden_CE, weight_VE, transform)
    return logits_CV.log_softmax(-1), slope_CV


def head_logits(
    hidden_CE: torch.Tensor, weight_VE: torch.Tensor, transform: HeadTransform
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits of the whole vocabulary, [C, V], float32, and the slope of soft-capping, if any.

    Steps are done in place, so that one chunk of logits exists at a time.
    """
    logits_CV = hidden_CE @ weight_VE.t()
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if transform.scale != 1.0:
        logits_CV.mul_(transform.scale)
    slope_CV = None
    if transform.softcap is not None:
        capped_CV = torch.tanh_(logits_CV.div_(transform.softcap))
        slope_CV = 1 - capped_CV.square()
        logits_CV = capped_CV.mul_(transform.softcap)
    return logits_CV, slope_CV


def _descent(
    logps_CV: torch.Tensor,
    slope_CV: torch.Tensor | None,
    targets_C: torch.Tensor,
    transform: HeadTransform,
) -> torch.Tensor:
    """Gradient of each target's -log p by the head's raw output: [C, V]; reuses `logps_CV`.

    Of -log p, since the sign costs nothing in the small matrices that are made of it.
    """
    descent_CV = logps_CV.exp_()
    descent_CV.scatter_add_(-1, targets_C[:, None], descent_CV.new_full((len(targets_C), 1), -1.0))
    if slope_CV is not None:
        descent_CV.mul_(slope_CV)
    return descent_CV.mul_(transform.scale) if transform.scale != 1.0 else descent_CV


def _add_product(total_VE: torch.Tensor, grad_CV: torch.Tensor, hidden_CE: torch.Tensor) -> None:
    """Adds a chunk's weight gradient to the sum, which is in float32 or better."""
    if total_VE.dtype == grad_CV.dtype:
        total_VE.addmm_(grad_CV.t(), hidden_CE)
    else:
        total_VE.add_(grad_CV.t() @ hidden_CE)
