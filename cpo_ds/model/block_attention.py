"""Attention in plain matrix products, block by block: faster on CPUs in bfloat16 than torch's own.

A block is the tokens of one pair and some key-value heads. Queries that share a key-value head are
rows of one product, so keys are never copied for them.

Shape suffixes: T unique tokens, H query heads, K key-value heads, G query heads of each, D head
size, L tokens of a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cpo_ds.model.shared_prefix import SharedPrefixLayout

# The weights of a pair of at most this many tokens are kept for the backward pass, since they are
# small; those of a longer pair are computed again.
KEPT_LENGTH = 256
# A block has as many key-value heads as keep its scores below this number, but one at least.
BLOCK_SCORES = 2**24


@dataclass(frozen=True)
class _Block:
    """Key-value heads of one pair, and what they attend with."""

    tokens: slice
    kv_heads: slice
    heads: slice  # of the queries
    hidden: torch.Tensor  # [G * L, L]: 0, or -inf for a hidden key
    is_kept: bool  # whether the weights are

    def rows(self, states_HTD: torch.Tensor) -> torch.Tensor:
        """States of the query heads, those of a key-value head together: [K, G L, D]."""
        kv_heads = self.kv_heads.stop - self.kv_heads.start
        return states_HTD[self.heads, self.tokens].reshape(kv_heads, -1, states_HTD.shape[-1])

    def put_rows(self, rows: torch.Tensor, output_THD: torch.Tensor) -> None:
        """The reverse of `rows`."""
        output_LHD = output_THD[self.tokens, self.heads]
        length, heads, size = output_LHD.shape
        output_LHD.copy_(rows.reshape(heads, length, size).transpose(0, 1))

    def weights(self, query_HTD: torch.Tensor, key_KTD: torch.Tensor, scale: float) -> torch.Tensor:
        """Weights of the keys for each query: [K, G L, L], of the query's dtype."""
        wide = torch.promote_types(query_HTD.dtype, torch.float32)
        query, key = self.rows(query_HTD), key_KTD[self.kv_heads, self.tokens]
        scores = torch.baddbmm(
            self.hidden.to(wide), query.to(wide), key.to(wide).transpose(1, 2), alpha=scale
        )
        return scores.softmax(-1).to(query.dtype)


def blocks(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention in matrix products, scores and softmax in float32 or better: [T, H, D]."""
    assert softcap is None
    kv_heads, groups = len(key_KTD), len(query_HTD) // len(key_KTD)
    parts = layout.keep(
        ("blocks", window, kv_heads, groups),
        lambda: list(_blocks(layout, window, kv_heads, groups)),
    )
    return _Blocks.apply(query_HTD, key_KTD, value_KTD, parts, scale)


def _blocks(
    layout: SharedPrefixLayout, window: int | None, kv_heads: int, groups: int
) -> Iterator[_Block]:
    """The blocks of all pairs; together they have each key-value head of each pair once."""
    start = 0
    for length, mask in zip(layout.lengths, layout.masks(window), strict=True):
        hidden = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf).repeat(groups, 1)
        step = min(kv_heads, max(1, BLOCK_SCORES // hidden.numel()))
        for first in range(0, kv_heads, step):
            last = min(first + step, kv_heads)
            yield _Block(
                slice(start, start + length),
                slice(first, last),
                slice(first * groups, last * groups),
                hidden,
                is_kept=length <= KEPT_LENGTH,
            )
        start += length


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_HTD: torch.Tensor,
        key_KTD: torch.Tensor,
        value_KTD: torch.Tensor,
        parts: list[_Block],
        scale: float,
    ) -> torch.Tensor:
        heads, tokens, size = query_HTD.shape
        output_THD = query_HTD.new_empty(tokens, heads, size)
        kept = []
        for block in parts:
            weights = block.weights(query_HTD, key_KTD, scale)
            block.put_rows(weights @ value_KTD[block.kv_heads, block.tokens], output_THD)
            kept.append(weights if block.is_kept else None)
        ctx.save_for_backward(query_HTD, key_KTD, value_KTD, *kept)
        ctx.parts, ctx.scale = parts, scale
        return output_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_HTD, key_KTD, value_KTD, *kept = ctx.saved_tensors
        grad_HTD = grads[0].transpose(0, 1)
        # Laid out by tokens, as the products before attention make them.
        by_query, by_key, by_value = (
            state.new_empty(state.shape[1], state.shape[0], state.shape[2])
            for state in (query_HTD, key_KTD, value_KTD)
        )
        for block, weights in zip(ctx.parts, kept, strict=True):
            if weights is None:
                weights = block.weights(query_HTD, key_KTD, ctx.scale)
            query, grad = block.rows(query_HTD), block.rows(grad_HTD)
            key, value = (states[block.kv_heads, block.tokens] for states in (key_KTD, value_KTD))
            own_key, own_value = (
                gradient[block.tokens, block.kv_heads] for gradient in (by_key, by_value)
            )
            own_value.copy_((weights.transpose(1, 2) @ grad).transpose(0, 1))
            by_weights = grad @ value.transpose(1, 2)
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            by_scores.mul_(ctx.scale)
            block.put_rows(by_scores @ key, by_query)
            own_key.copy_((by_scores.transpose(1, 2) @ query).transpose(0, 1))
        return *(grad.transpose(0, 1) for grad in (by_query, by_key, by_value)), None, None
