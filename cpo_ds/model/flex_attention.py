"""FlexAttention as a backend: torch compiles the mask of shared prefixes into its kernel.

It soft-caps scores, needs no second copy of the prefix's keys, and its gradient has no atomics.

Shape suffixes: T unique tokens, H query heads, K key-value heads, D head size, B blocks of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._dynamo.config
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from cpo_ds.model.shared_prefix import SharedPrefixLayout
from cpo_ds.schema import to_device

_BLOCK = 128  # tokens; the kernel skips a block of keys that no query of a block sees


def flex(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """torch's FlexAttention: [T, H, D]. CUDA; on a CPU it has no gradient and is slow."""
    attend: Any = _compiled() if query_HTD.is_cuda else flex_attention
    output = attend(
        query_HTD[None],
        key_KTD[None],
        value_KTD[None],
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=layout.keep(("block mask", window), lambda: block_mask(layout, window)),
        scale=scale,
        enable_gqa=query_HTD.shape[0] != key_KTD.shape[0],
    )
    output_HTD: torch.Tensor = output[0]
    return output_HTD.transpose(0, 1)


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    """The kernel, compiled for one row, then for rows of any length.

    `dynamic=True` would compile once less, but makes variables of the size of blocks and of the
    cap, and has no gradient then. `fullgraph` makes torch raise an error if it cannot compile,
    rather than run uncompiled, which would keep all scores.
    """
    # Layers with and without a window, with and without a gradient, for rows of one block or more.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 16)
    return torch.compile(flex_attention, fullgraph=True)


def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    def capped(score: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


def block_mask(layout: SharedPrefixLayout, window: int | None) -> BlockMask:
    """The keys that each query sees, and blocks of keys with all that a block of queries sees."""
    begin_T, hidden_begin_T, hidden_end_T = _bounds(layout)
    total = len(begin_T)

    # The blocks of keys run from the earliest key that any query of the block sees to its own.
    earliest_T = begin_T
    if window is not None:
        hidden_T = hidden_end_T - hidden_begin_T
        earliest_T = torch.maximum(begin_T, torch.arange(total) - hidden_T - window + 1)
    first_B = torch.stack([part.min() for part in earliest_T.split(_BLOCK)]) // _BLOCK
    block_B = torch.arange(len(first_B))
    counts_B = block_B - first_B + 1
    blocks_BB = (first_B[:, None] + block_B) % len(first_B)

    bounds = torch.stack([begin_T, hidden_begin_T, hidden_end_T]).int()
    return BlockMask.from_kv_blocks(
        to_device(counts_B.int(), layout.device)[None, None],
        to_device(blocks_BB.int(), layout.device)[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=_visible(to_device(bounds, layout.device), window),
        seq_lengths=(total, total),
    )


def _bounds(layout: SharedPrefixLayout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per query: the begin of its pair, and begin and end of the branches hidden from it: [T] each.

    Earlier branches are hidden from later ones; nothing is hidden from other queries.
    """
    values, lengths, begin = [], [], 0
    for prefix, chosen, *rejected in layout.segments:
        values.append((begin, begin, begin))
        lengths += [prefix + chosen, *rejected]
        end = begin + prefix + chosen
        for branch in rejected:
            values.append((begin, begin + prefix, end))
            end += branch
        begin = end
    bounds = torch.tensor(values).repeat_interleave(torch.tensor(lengths), dim=0)
    begin_T, hidden_begin_T, hidden_end_T = bounds.unbind(1)
    return begin_T, hidden_begin_T, hidden_end_T


def _visible(bounds: torch.Tensor, window: int | None) -> Callable[..., torch.Tensor]:
    """The mask as a function of indices; `bounds` are those of `_bounds`, on the device."""

    def visible(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        hidden_begin, hidden_end = bounds[1, query], bounds[2, query]
        seen = (key >= bounds[0, query]) & (key <= query)
        seen = seen & ((key < hidden_begin) | (key >= hidden_end))
        if window is not None:
            # Positions go on from the prefix in all branches.
            hidden = torch.where(key < hidden_begin, hidden_end - hidden_begin, 0)
            seen = seen & (query - key - hidden < window)
        return seen

    return visible
