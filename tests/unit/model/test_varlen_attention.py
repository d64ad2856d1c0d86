"""Backends with variable-length kernels, by the kernels' documentation and on a GPU."""

from __future__ import annotations

import inspect
import itertools
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from attention_oracle import SEGMENTS, assert_equals_oracle, draw, relative_error, run

from cpo_ds.model.attention import BACKENDS
from cpo_ds.model.shared_prefix import Segments, SharedPrefixLayout


def varlen_by_definition(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_ends: torch.Tensor,
    key_ends: torch.Tensor,
    *,
    scale: float,
    window: tuple[int, int],
    softcap: float,
) -> torch.Tensor:
    """Attention as flash-attn documents it.

    Query i of a sequence sees keys between i + shift - window[0] and i + shift + window[1],
    inclusive, with shift = key length - query length; -1 is no bound.
    """
    outputs = []
    ends = list(zip(query_ends.tolist(), key_ends.tolist(), strict=True))
    for (q0, k0), (q1, k1) in itertools.pairwise(ends):
        groups = query.shape[1] // key.shape[1]
        keys, values = (s[k0:k1].repeat_interleave(groups, 1) for s in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        # The last query is aligned with the last key.
        distance = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None] - (k1 - k0 - q1 + q0)
        visible = torch.ones_like(distance, dtype=torch.bool)
        if window[0] >= 0:
            visible &= distance >= -window[0]
        if window[1] >= 0:
            visible &= distance <= window[1]
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


def check_lengths(ends: torch.Tensor, longest: int, states: torch.Tensor) -> None:
    assert ends.dtype == torch.int32 and ends[-1] == len(states)
    assert longest == int(ends.diff().max())
    assert states.stride(-1) == 1  # the kernels need it


@pytest.fixture
def emulated_torch_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    real = inspect.signature(varlen.varlen_attn)

    def varlen_attn(*args: Any, **kwargs: Any) -> torch.Tensor:
        given_ = real.bind(*args, **kwargs)  # the call must fit the installed torch
        given_.apply_defaults()
        a = given_.arguments
        assert a["seqused_k"] is None and a["block_table"] is None and a["return_aux"] is None
        assert a["enable_gqa"] == (a["query"].shape[1] != a["key"].shape[1])
        check_lengths(a["cu_seq_q"], a["max_q"], a["query"])
        check_lengths(a["cu_seq_k"], a["max_k"], a["key"])
        return varlen_by_definition(
            a["query"], a["key"], a["value"], a["cu_seq_q"], a["cu_seq_k"],
            scale=a["scale"], window=a["window_size"], softcap=0.0,
        )  # fmt: skip

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)


@pytest.fixture
def emulated_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    def flash_attn_varlen_func(  # flash-attn 2.8's signature
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
        assert dropout_p == 0.0 and softmax_scale is not None and not return_attn_probs
        check_lengths(cu_seqlens_q, max_seqlen_q, q)
        check_lengths(cu_seqlens_k, max_seqlen_k, k)
        window = (window_size[0], 0 if causal else window_size[1])
        return varlen_by_definition(
            q, k, v, cu_seqlens_q, cu_seqlens_k,
            scale=softmax_scale, window=window, softcap=softcap,
        )  # fmt: skip

    fake = ModuleType("flash_attn")
    fake.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", fake)


@pytest.mark.usefixtures("emulated_torch_varlen", "emulated_flash_attn")
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("backend", ["torch_varlen", "flash_attn"])
def test_varlen_layouts_equal_plain_attention_by_the_kernels_documentation(
    backend: str, segments: Segments, heads: tuple[int, int], window: int | None
) -> None:
    states = draw(segments, heads=heads[0], kv_heads=heads[1])
    assert_equals_oracle(backend, segments, states, scale=0.3, window=window)


@pytest.mark.usefixtures("emulated_flash_attn")
def test_flash_attn_caps_scores() -> None:
    segments = SEGMENTS["three pairs of odd sizes"]
    assert_equals_oracle("flash_attn", segments, draw(segments), scale=2.0, softcap=1.5)


HALF = (torch.bfloat16, torch.float16)
# Relative norm-wise errors to expect of outputs and gradients rounded to 8 and 11 bits.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("backend", ["torch_varlen", "flash_attn"])
def test_flash_kernels_equal_the_reference(
    backend: str, dtype: torch.dtype, heads: tuple[int, int], window: int | None
) -> None:
    if backend == "flash_attn":
        pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    segments = ((55, 45, 47), (1, 1, 1), (0, 33, 1), (130, 7, 64), (63, 65, 129))
    states = draw(segments, heads=heads[0], kv_heads=heads[1], head_dim=64, dtype=dtype,
                  device="cuda")  # fmt: skip
    exact = tuple(s.detach().double().requires_grad_() for s in states)
    layout = SharedPrefixLayout(segments, states[0].device)
    weight = torch.randn(states[0].transpose(0, 1).shape, device="cuda", dtype=torch.float64)
    options = {"scale": 0.125, "window": window}
    actual = run(lambda *s: BACKENDS[backend](*s, layout, **options), states, weight)
    expected = run(lambda *s: BACKENDS["reference"](*s, layout, **options), exact, weight)
    names = ("output", "query gradient", "key gradient", "value gradient")
    for name, a, e in zip(names, actual, expected, strict=True):
        tolerance = TOLERANCES[dtype] * (1 if name == "output" else 2)
        assert relative_error(a, e) < tolerance, f"{backend}: {name}"
