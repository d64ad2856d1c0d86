"""Shared-prefix attention: all branches of a pair see its prefix and themselves, not each other.

The backends below have one signature and compute the same function. Each is registered with
transformers' attention registry (see `registered_name`), so no model code is patched. The model's
forward call hands them the layout of a micro-batch as the keyword argument `shared_prefix`.

Shape suffixes: T unique tokens, H query heads, K key-value heads, D head size, L tokens of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from cpo_ds.model.block_attention import blocks
from cpo_ds.model.flex_attention import flex
from cpo_ds.model.shared_prefix import SharedPrefixLayout, States
from cpo_ds.model.varlen_kernels import flash_attn, flash_attn_3, flash_attn_4, torch_varlen

Backend = Callable[..., torch.Tensor]


def _pairs(
    states: States, layout: SharedPrefixLayout, window: int | None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Queries, keys, values and mask of one pair after the other."""
    split = (state.split(layout.lengths, dim=1) for state in states)
    return zip(*split, layout.masks(window), strict=True)


def reference(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention by its definition, softmax in float32 or better: [T, H, D]. Slow, for any model."""
    groups = query_HTD.shape[0] // key_KTD.shape[0]
    outputs = []
    for query, key, value, visible in _pairs((query_HTD, key_KTD, value_KTD), layout, window):
        scores = query @ key.repeat_interleave(groups, 0).transpose(1, 2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).to(value.dtype)
        outputs.append(weights @ value.repeat_interleave(groups, 0))
    return torch.cat(outputs, dim=1).transpose(0, 1)


def sdpa(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """torch's fused attention, pair by pair under the pair's mask: [T, H, D].

    Branch by branch it would keep a copy of the prefix's keys and values for each branch.
    """
    assert softcap is None
    outputs = [
        F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=visible, scale=scale, enable_gqa=True
        )[0]
        for query, key, value, visible in _pairs((query_HTD, key_KTD, value_KTD), layout, window)
    ]
    return torch.cat(outputs, dim=1).transpose(0, 1)


BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "sdpa": sdpa,
    "torch_varlen": torch_varlen,
    "flash_attn": flash_attn,
    "flash_attn_3": flash_attn_3,
    "flash_attn_4": flash_attn_4,
    "flex": flex,
    "blocks": blocks,
}


def registered_name(backend: str) -> str:
    """Name of a backend in transformers' attention registry; it ends in a number.

    transformers looks for words in these names: it would take one with "flash" for a kernel to be
    fetched from its hub, and one with "sdpa" for its own backend.
    """
    return f"cpo_ds_backend_{list(BACKENDS).index(backend)}"


def _registered(attend: Backend) -> Callable[..., tuple[torch.Tensor, None]]:
    """A backend in the form that transformers calls."""

    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,  # [1, H, T, D]
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        shared_prefix: SharedPrefixLayout,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **other: Any,
    ) -> tuple[torch.Tensor, None]:
        assert attention_mask is None and dropout == 0.0 and other.get("s_aux") is None
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        output_THD = attend(
            query.squeeze(0), key.squeeze(0), value.squeeze(0), shared_prefix,
            scale=scale, window=sliding_window, softcap=softcap,
        )  # fmt: skip
        return output_THD[None], None

    return attention


for _name, _backend in BACKENDS.items():
    AttentionInterface.register(registered_name(_name), _registered(_backend))
