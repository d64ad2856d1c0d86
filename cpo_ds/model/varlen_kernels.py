"""Attention backends with variable-length kernels: each branch is a sequence of its own.

Under `torch.use_deterministic_algorithms` their gradients are the same in every run.

Shape suffixes: T unique tokens, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cpo_ds.model.shared_prefix import SharedPrefixLayout, States, gather_keys


def _varlen_arguments(states: States, layout: SharedPrefixLayout) -> tuple[Any, ...]:
    """First arguments of the variable-length kernels: states [T, heads, D], ends, longest lengths.

    Each branch is a sequence of its own there, and keys of the prefix are copied for both.
    """
    query, key, value = (state.transpose(0, 1) for state in states)
    key, value = (gather_keys(state, layout) for state in (key, value))
    longest = max(layout.query_lengths), max(layout.key_lengths)
    return query, key, value, layout.query_ends, layout.key_ends, *longest


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

    states = (query_HTD, key_KTD, value_KTD)
    return _flash(flash_attn_varlen_func, states, layout, scale, window, softcap)


def flash_attn_3(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """flash-attn 3's variable-length kernel: [T, H, D]. CUDA (Hopper), bfloat16 or float16."""
    from flash_attn_interface import flash_attn_varlen_func  # an optional package

    states = (query_HTD, key_KTD, value_KTD)
    return _flash(flash_attn_varlen_func, states, layout, scale, window, softcap)


def _flash(
    kernel: Callable[..., Any],
    states: States,
    layout: SharedPrefixLayout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Calls the kernel of flash-attn 2 or 3, which take the same arguments."""
    output = kernel(
        *_varlen_arguments(states, layout),
        softmax_scale=scale,
        causal=True,  # aligned to the bottom right, so the rejected branch sees its whole prefix
        window_size=(-1 if window is None else window - 1, 0),
        softcap=softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    # Some versions of flash-attn 3 return the log of each query's sum of weights too.
    return output[0] if isinstance(output, tuple) else output


def flash_attn_4(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """flash-attn 4's variable-length kernel: [T, H, D]. CUDA (Hopper on), bfloat16 or float16."""
    from flash_attn.cute import flash_attn_varlen_func  # an optional package

    assert softcap is None  # early versions ignore it in the backward pass
    query, key, value, query_ends, key_ends, longest_query, longest_key = _varlen_arguments(
        (query_HTD, key_KTD, value_KTD), layout
    )
    # By keyword, since versions differ in the order of arguments.
    output, _ = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=query_ends,
        cu_seqlens_k=key_ends,
        max_seqlen_q=longest_query,
        max_seqlen_k=longest_key,
        softmax_scale=scale,
        causal=True,
        window_size=(None if window is None else window - 1, 0),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return output
