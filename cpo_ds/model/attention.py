"""Shared-prefix attention: both branches of a pair see its prefix and themselves, not each other.

The backends below have one signature and compute the same function. Each is registered with
transformers' attention registry (see `registered_name`), so no model code is patched. The model's
forward call hands them the layout of a micro-batch as the keyword argument `shared_prefix`.

Shape suffixes: T unique tokens, H query heads, K key-value heads, D head size, L tokens of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from cpo_ds.schema import to_device

Segments = tuple[tuple[int, int, int], ...]
Backend = Callable[..., torch.Tensor]
States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys, values


class SharedPrefixLayout:
    """The layout of the pairs in one packed row, with masks and indices for the backends.

    `segments` holds (prefix, chosen branch, rejected branch) lengths per pair. Each mask or index
    is made when a layer first asks for it, and kept for the other layers.
    """

    def __init__(self, segments: Segments, device: torch.device) -> None:
        self.segments = segments
        self.device = device
        self.lengths = [sum(segment) for segment in segments]
        self._masks: dict[int | None, list[torch.Tensor]] = {}

    def masks(self, window: int | None) -> list[torch.Tensor]:
        """The keys that each query sees, per pair: bool [L, L]. `window` limits the distance."""
        if window not in self._masks:
            self._masks[window] = [
                pair_mask(*segment, window=window, device=self.device) for segment in self.segments
            ]
        return self._masks[window]

    @cached_property
    def key_index(self) -> torch.Tensor:
        """Keys of `[prefix + chosen], [prefix + rejected], ...`: indices into T, int64.

        Keys of a prefix come twice, once for each branch.
        """
        parts, offset = [], 0
        for (prefix, chosen, _), length in zip(self.segments, self.lengths, strict=True):
            branch = offset + prefix + chosen
            parts += [
                torch.arange(offset, branch),
                torch.arange(offset, offset + prefix),
                torch.arange(branch, offset + length),
            ]
            offset += length
        return to_device(torch.cat(parts), self.device)

    @cached_property
    def query_lengths(self) -> list[int]:
        """Lengths of the query sequences `[prefix + chosen], [rejected], ...`."""
        return [
            length
            for prefix, chosen, rejected in self.segments
            for length in (prefix + chosen, rejected)
        ]

    @cached_property
    def key_lengths(self) -> list[int]:
        """Lengths of the key sequences `[prefix + chosen], [prefix + rejected], ...`."""
        return [
            length
            for prefix, chosen, rejected in self.segments
            for length in (prefix + chosen, prefix + rejected)
        ]

    @cached_property
    def query_ends(self) -> torch.Tensor:
        """Cumulative `query_lengths` from 0, int32 [2P + 1]."""
        return self._ends(self.query_lengths)

    @cached_property
    def key_ends(self) -> torch.Tensor:
        """Cumulative `key_lengths` from 0, int32 [2P + 1]."""
        return self._ends(self.key_lengths)

    def _ends(self, lengths: list[int]) -> torch.Tensor:
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return to_device(ends, self.device)


def pair_mask(
    prefix: int, chosen: int, rejected: int, *, window: int | None, device: torch.device | str
) -> torch.Tensor:
    """Visibility inside `prefix · chosen · rejected`: bool [L, L], True if the query sees the key.

    `window` limits the distance between the positions of query and key.
    """
    branch = prefix + chosen  # the rejected branch begins here
    index = torch.arange(branch + rejected, device=device)
    # Each sees itself and earlier ones, but the rejected branch does not see the chosen one.
    visible = index[:, None] >= index[None, :]
    visible &= ~(
        (index[:, None] >= branch) & (index[None, :] >= prefix) & (index[None, :] < branch)
    )
    if window is not None:
        # Positions go on from the prefix in both branches.
        position = torch.where(index < branch, index, index - chosen)
        visible &= position[:, None] - position[None, :] < window
    return visible


def _pairs(
    states: States, layout: SharedPrefixLayout, window: int | None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Queries, keys, values and mask of one pair after the other."""
    split = (state.split(layout.lengths, dim=1) for state in states)
    return zip(*split, layout.masks(window), strict=True)


def _varlen_arguments(states: States, layout: SharedPrefixLayout) -> tuple[Any, ...]:
    """First arguments of the variable-length kernels: states [T, heads, D], ends, longest lengths.

    Each branch is a sequence of its own there, and keys of the prefix are copied for both.
    """
    query, key, value = (state.transpose(0, 1) for state in states)
    key, value = (state.index_select(0, layout.key_index) for state in (key, value))
    longest = max(layout.query_lengths), max(layout.key_lengths)
    return query, key, value, layout.query_ends, layout.key_ends, *longest


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
    """torch's fused attention, pair by pair under the pair's mask: [T, H, D]."""
    assert softcap is None
    outputs = [
        F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=visible, scale=scale, enable_gqa=True
        )[0]
        for query, key, value, visible in _pairs((query_HTD, key_KTD, value_KTD), layout, window)
    ]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def torch_varlen(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """torch's variable-length flash kernel: [T, H, D]. CUDA, bfloat16 or float16."""
    from torch.nn.attention.varlen import varlen_attn  # here, since only GPUs need it

    assert softcap is None
    output = varlen_attn(
        *_varlen_arguments((query_HTD, key_KTD, value_KTD), layout),
        scale=scale,
        # Causal, aligned to the bottom right, so that the rejected branch sees its whole prefix.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query_HTD.shape[0] != key_KTD.shape[0],
    )
    assert isinstance(output, torch.Tensor)
    return output


def flash_attn(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """flash-attn 2's variable-length kernel: [T, H, D]. CUDA, bfloat16 or float16."""
    from flash_attn import flash_attn_varlen_func  # an optional package

    return flash_attn_varlen_func(
        *_varlen_arguments((query_HTD, key_KTD, value_KTD), layout),
        softmax_scale=scale,
        causal=True,  # aligned to the bottom right, so the rejected branch sees its whole prefix
        window_size=(-1 if window is None else window - 1, 0),
        softcap=softcap or 0.0,
    )


BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "sdpa": sdpa,
    "torch_varlen": torch_varlen,
    "flash_attn": flash_attn,
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
            query[0], key[0], value[0], shared_prefix,
            scale=scale, window=sliding_window, softcap=softcap,
        )  # fmt: skip
        return output_THD[None], None

    return attention


for _name, _backend in BACKENDS.items():
    AttentionInterface.register(registered_name(_name), _registered(_backend))
