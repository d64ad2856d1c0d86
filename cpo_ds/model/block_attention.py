"""Attention in plain matrix products, block by block: faster on CPUs in bfloat16 than torch's own.

A block is one part of the layout and some key-value heads. Queries that share a key-value head are
rows of one product, so keys are never copied for them.

Shape suffixes: T unique tokens, H query heads, K key-value heads, G query heads of each, D head
size, L queries of a part, M keys of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cpo_ds.model.shared_prefix import Part, SharedPrefixLayout

Give = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# The weights of a part with at most this many keys are kept for the backward pass, since they are
# small; those of a longer part are computed again.
KEPT_LENGTH = 256
# A block has as many key-value heads as keep its scores below this number, but one at least.
BLOCK_SCORES = 2**24


@dataclass(frozen=True)
class _Block:
    """Key-value heads of one part, and what they attend with."""

    part: Part
    kv_heads: slice
    heads: slice  # of the queries
    hidden: torch.Tensor  # [G * L, M]: 0, or -inf for a hidden key
    is_kept: bool  # whether the weights are

    def rows(self, states_HTD: torch.Tensor) -> torch.Tensor:
        """States of the query heads, those of a key-value head together: [K, G L, D]."""
        kv_heads = self.kv_heads.stop - self.kv_heads.start
        queries = states_HTD[self.heads, self.part.queries]
        return queries.reshape(kv_heads, -1, states_HTD.shape[-1])

    def put_rows(self, rows: torch.Tensor, output_THD: torch.Tensor) -> None:
        """The reverse of `rows`."""
        output_LHD = output_THD[self.part.queries, self.heads]
        length, heads, size = output_LHD.shape
        output_LHD.copy_(rows.reshape(heads, length, size).transpose(0, 1))

    def keys(self, states_KTD: torch.Tensor) -> torch.Tensor:
        """Keys or values: [K, M, D]."""
        return self.part.keys_of(states_KTD[self.kv_heads])

    def give_keys(self, gradient_KMD: torch.Tensor, total_TKD: torch.Tensor, give: Give) -> None:
        """Copies the gradient of keys or values to their places, or adds it there."""
        gradient_MKD, begin = gradient_KMD.transpose(0, 1), 0
        for keys in self.part.keys:
            end = begin + keys.stop - keys.start
            give(total_TKD[keys, self.kv_heads], gradient_MKD[begin:end])
            begin = end

    def weights(self, query_HTD: torch.Tensor, key_KTD: torch.Tensor, scale: float) -> torch.Tensor:
        """Weights of the keys for each query: [K, G L, M], of the query's dtype."""
        wide = torch.promote_types(query_HTD.dtype, torch.float32)
        query, key = self.rows(query_HTD), self.keys(key_KTD)
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
    """The blocks of all parts; together they have each key-value head of each part once."""
    for part in layout.parts(window):
        mask = part.visible
        hidden = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf).repeat(groups, 1)
        step = min(kv_heads, max(1, BLOCK_SCORES // hidden.numel()))
        for first in range(0, kv_heads, step):
            last = min(first + step, kv_heads)
            yield _Block(
                part,
                slice(first, last),
                slice(first * groups, last * groups),
                hidden,
                is_kept=mask.shape[1] <= KEPT_LENGTH,
            )


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
            block.put_rows(weights @ block.keys(value_KTD), output_THD)
            kept.append(weights if block.is_kept else None)
        ctx.save_for_backward(query_HTD, key_KTD, value_KTD, *kept)
        ctx.parts, ctx.scale = parts, scale
        return output_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_HTD, key_KTD, value_KTD, *kept = ctx.saved_tensors
        grad_HTD = grads[0].transpose(0, 1)
        # Laid out by tokens, as the products before attention make them. Keys of a prefix get a sum
        # from several parts, in float32 or better.
        by_query, by_key, by_value = (
            state.new_empty(state.shape[1], state.shape[0], state.shape[2])
            for state in (query_HTD, key_KTD, value_KTD)
        )
        give: Give = torch.Tensor.copy_
        if any(len(block.part.keys) > 1 for block in ctx.parts):
            wide = torch.promote_types(key_KTD.dtype, torch.float32)
            by_key, by_value = (torch.zeros_like(one, dtype=wide) for one in (by_key, by_value))
            give = torch.Tensor.add_
        for block, weights in zip(ctx.parts, kept, strict=True):
            if weights is None:
                weights = block.weights(query_HTD, key_KTD, ctx.scale)
            query, grad = block.rows(query_HTD), block.rows(grad_HTD)
            key, value = block.keys(key_KTD), block.keys(value_KTD)
            block.give_keys(weights.transpose(1, 2) @ grad, by_value, give)
            by_weights = grad @ value.transpose(1, 2)
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            by_scores.mul_(ctx.scale)
            block.put_rows(by_scores @ key, by_query)
            block.give_keys(by_scores.transpose(1, 2) @ query, by_key, give)
        own = key_KTD.dtype
        by_states = (by_query, by_key.to(own), by_value.to(own))
        return *(grad.transpose(0, 1) for grad in by_states), None, None
