"""Stand-ins for flash-attn 2, 3 and 4: their own signatures, and checks of what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch


@dataclass
class KernelCall:
    """The arguments of a call, the same for all versions."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int
    scale: float
    causal: bool
    window: tuple[int, int]
    softcap: float
    deterministic: bool


Compute = Callable[[KernelCall], torch.Tensor]


def flash_attn_modules(compute: Compute) -> dict[str, ModuleType]:
    """Modules by name, to be put into `sys.modules`; `compute` gives the output of a call."""
    modules = {name: ModuleType(name) for name in ("flash_attn", "flash_attn_interface")}
    modules["flash_attn.cute"] = ModuleType("flash_attn.cute")
    kernels = (_version_2(compute), _version_3(compute), _version_4(compute))
    for module, kernel in zip(modules.values(), kernels, strict=True):
        module.flash_attn_varlen_func = kernel  # type: ignore[attr-defined]
    modules["flash_attn"].cute = modules["flash_attn.cute"]  # type: ignore[attr-defined]
    return modules


def _version_2(compute: Compute) -> Callable[..., Any]:
    def flash_attn_varlen_func(  # 2.8
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert dropout_p == 0.0 and alibi_slopes is None and block_table is None
        assert softmax_scale is not None and not return_attn_probs
        return compute(
            KernelCall(
                q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                softmax_scale, causal, window_size, softcap, deterministic,
            )
        )  # fmt: skip

    return flash_attn_varlen_func


def _version_3(compute: Compute) -> Callable[..., Any]:
    def flash_attn_varlen_func(  # hopper folder of 2.8 and of the main branch
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        seqused_q: torch.Tensor | None = None,
        seqused_k: torch.Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        qv: torch.Tensor | None = None,
        q_descale: torch.Tensor | None = None,
        k_descale: torch.Tensor | None = None,
        v_descale: torch.Tensor | None = None,
        window_size: tuple[int, int] = (-1, -1),
        attention_chunk: int = 0,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        sm_margin: int = 0,
        return_attn_probs: bool = False,  # not in 2.8
    ) -> torch.Tensor:
        assert seqused_q is None and seqused_k is None and qv is None and softmax_scale is not None
        return compute(
            KernelCall(
                q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                softmax_scale, causal, window_size, softcap, deterministic,
            )
        )  # fmt: skip

    return flash_attn_varlen_func


def _version_4(compute: Compute) -> Callable[..., Any]:
    def flash_attn_varlen_func(  # 4.0.0b9, whose arguments all later versions have
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        qv: torch.Tensor | None = None,
        cu_seqlens_q: torch.Tensor | None = None,
        cu_seqlens_k: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        min_seqlen_k: int | None = None,
        seqused_q: torch.Tensor | None = None,
        seqused_k: torch.Tensor | None = None,
        gather_kv_indices: torch.Tensor | None = None,
        page_table: torch.Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int | None, int | None] = (None, None),
        learnable_sink: torch.Tensor | None = None,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        score_mod: Callable[..., Any] | None = None,
        aux_tensors: list[torch.Tensor] | None = None,
        return_lse: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert qv is None and softcap == 0.0 and softmax_scale is not None
        assert cu_seqlens_q is not None and cu_seqlens_k is not None
        assert max_seqlen_q is not None and max_seqlen_k is not None
        # A negative bound is a bound here: None is for no bound.
        assert all(bound is None or bound >= 0 for bound in window_size)
        left, right = (-1 if bound is None else bound for bound in window_size)
        call = KernelCall(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
            softmax_scale, causal, (left, right), softcap, deterministic,
        )  # fmt: skip
        return compute(call), None

    return flash_attn_varlen_func
