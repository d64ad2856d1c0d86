"""Attention pair by pair in plain matrix products: faster on CPUs in bfloat16 than torch's own.

Queries that share a key-value head are rows of one product, so keys are never copied for them. The
weights of a pair are kept for the backward pass: [H, L, L] numbers, little for pairs of sentences.

Shape suffixes: T unique tokens, H query heads, K key-value heads, G query heads of each, D head
size, L tokens of a pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from cpo_ds.model.shared_prefix import SharedPrefixLayout


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
    groups = query_HTD.shape[0] // key_KTD.shape[0]
    hidden = layout.keep(("hidden", window, groups), lambda: _hidden(layout, window, groups))
    return _Blocks.apply(query_HTD, key_KTD, value_KTD, layout, hidden, scale)


def _hidden(layout: SharedPrefixLayout, window: int | None, groups: int) -> list[torch.Tensor]:
    """What to add to the scores of each pair: 0, or -inf for a hidden key; [G * L, L]."""
    return [
        torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf).repeat(groups, 1)
        for mask in layout.masks(window)
    ]


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_HTD: torch.Tensor,
        key_KTD: torch.Tensor,
        value_KTD: torch.Tensor,
        layout: SharedPrefixLayout,
        hidden: list[torch.Tensor],
        scale: float,
    ) -> torch.Tensor:
        heads, tokens, size = query_HTD.shape
        output_THD = query_HTD.new_empty(tokens, heads, size)
        wide = torch.promote_types(query_HTD.dtype, torch.float32)
        kept = []
        for pair, hidden_keys in zip(_pairs(layout), hidden, strict=True):
            query, key = _rows(query_HTD, pair, len(key_KTD)), key_KTD[:, pair]
            scores = torch.baddbmm(
                hidden_keys.to(wide), query.to(wide), key.to(wide).transpose(1, 2), alpha=scale
            )
            weights = scores.softmax(-1).to(query.dtype)  # [K, G * L, L]
            _put_rows(weights @ value_KTD[:, pair], output_THD[pair])
            kept.append(weights)
        ctx.save_for_backward(query_HTD, key_KTD, value_KTD, *kept)
        ctx.layout, ctx.scale = layout, scale
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
        for pair, weights in zip(_pairs(ctx.layout), kept, strict=True):
            query, grad = (_rows(state, pair, len(key_KTD)) for state in (query_HTD, grad_HTD))
            by_value[pair] = (weights.transpose(1, 2) @ grad).transpose(0, 1)
            by_weights = grad @ value_KTD[:, pair].transpose(1, 2)
            by_scores = torch._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            by_scores.mul_(ctx.scale)
            _put_rows(by_scores @ key_KTD[:, pair], by_query[pair])
            by_key[pair] = (by_scores.transpose(1, 2) @ query).transpose(0, 1)
        return *(grad.transpose(0, 1) for grad in (by_query, by_key, by_value)), None, None, None


def _pairs(layout: SharedPrefixLayout) -> Iterator[slice]:
    """The tokens of each pair."""
    end = 0
    for length in layout.lengths:
        yield slice(end, end + length)
        end += length


def _rows(states_HTD: torch.Tensor, pair: slice, kv_heads: int) -> torch.Tensor:
    """A pair's states, those of the heads that share a key-value head one after the other.

    [H, T, D] -> [K, G * L, D].
    """
    return states_HTD[:, pair].reshape(kv_heads, -1, states_HTD.shape[-1])


def _put_rows(rows: torch.Tensor, output_LHD: torch.Tensor) -> None:
    """The reverse of `_rows`, into a pair's part of [T, H, D]."""
    length, heads, size = output_LHD.shape
    output_LHD.copy_(rows.reshape(heads, length, size).transpose(0, 1))
