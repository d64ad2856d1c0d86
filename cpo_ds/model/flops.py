"""Counts the work of a model: weights in matrix products, and floating-point operations of a step.

One product of a weight with a token costs 2 operations, a multiplication and an addition. The work
of attention between tokens and of everything that is no matrix product is left out: it is small for
the short rows that are trained here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class MatrixWeights:
    """Numbers of weights in matrix products, over all ranks.

    The body sees every token. The head turns hidden states into logits and sees scored tokens only.
    """

    body: int
    head: int

    def products(self, tokens: float, scored_tokens: float) -> float:
        """Products of a weight with a token in one forward pass."""
        return self.body * tokens + self.head * scored_tokens


def matrix_weights(causal_lm: Any) -> MatrixWeights:
    """Counts the weights of a transformers model, an adapter's own included, also on `meta`.

    Embeddings are looked up, not multiplied, so they do not count. A head that is tied to them
    counts as head.
    """
    head = causal_lm.get_output_embeddings().weight
    not_in_body = {id(head), *map(id, causal_lm.get_input_embeddings().parameters())}
    shapes = [
        _whole_shape(parameter)
        for parameter in causal_lm.parameters()
        if id(parameter) not in not_in_body
    ]
    # Biases and the weights of norms have one dimension.
    body = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    return MatrixWeights(body, math.prod(_whole_shape(head)))


def _whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter before it was quantized, or before ZeRO-3 split it over ranks."""
    quantized = getattr(parameter, "quant_state", None)  # bitsandbytes keeps two weights a byte
    if quantized is not None:
        return tuple(quantized.shape)
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def step_flops(
    weights: MatrixWeights,
    tokens: float,
    scored_tokens: float,
    *,
    trains_adapter: bool,
    runs_reference: bool = False,
) -> float:
    """Floating-point operations that a step of `tokens` needs, however they are carried out.

    For each weight and token these are 2 in the forward pass, 2 for the gradient of activations, 2
    for the gradient of the weights if all of them are trained, and 2 if DPO's reference runs too.
    """
    per_product = (4 if trains_adapter else 6) + (2 if runs_reference else 0)
    return per_product * weights.products(tokens, scored_tokens)


def recomputed_flops(
    weights: MatrixWeights,
    tokens: float,
    scored_tokens: float,
    *,
    trains_adapter: bool,
    recomputed_share: float,
) -> float:
    """Floating-point operations that a step does a second time, to hold less in memory.

    Gradient checkpointing repeats the forward pass of a share of the body's layers. A trained head
    repeats its own, since its logits are not kept (see `logprobs`).
    """
    body = 2 * weights.body * tokens * recomputed_share
    head = 0 if trains_adapter else 2 * weights.head * scored_tokens
    return body + head
