"""Backends with variable-length kernels, by the kernels' documentation and on a GPU."""

from __future__ import annotations

import inspect
import itertools
import sys
from typing import Any

import pytest
import torch
from attention_oracle import CPU, SEGMENTS, assert_equals_oracle, draw, relative_error, run
from flash_attn_stand_ins import KernelCall, flash_attn_modules

from cpo_ds.errors import UserError
from cpo_ds.model.attention import BACKENDS
from cpo_ds.model.attention_choice import HALF, KERNELS, choose_backend
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
        # torch 2.15 may hand one object to cuDNN, whose causal mask is aligned to the top left.
        assert a["cu_seq_q"] is not a["cu_seq_k"]
        return varlen_by_definition(
            a["query"], a["key"], a["value"], a["cu_seq_q"], a["cu_seq_k"],
            scale=a["scale"], window=a["window_size"], softcap=0.0,
        )  # fmt: skip

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)


@pytest.fixture
def emulated_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn 2, 3 and 4 with the signatures that `flash_attn_stand_ins` has of each."""
    for name, module in flash_attn_modules(computed).items():
        monkeypatch.setitem(sys.modules, name, module)


def computed(call: KernelCall) -> torch.Tensor:
    check_lengths(call.query_ends, call.longest_query, call.query)
    check_lengths(call.key_ends, call.longest_key, call.key)
    assert call.causal and call.query_ends is not call.key_ends
    return varlen_by_definition(
        call.query, call.key, call.value, call.query_ends, call.key_ends,
        scale=call.scale, window=(call.window[0], 0), softcap=call.softcap,
    )  # fmt: skip


@pytest.mark.usefixtures("emulated_torch_varlen", "emulated_flash_attn")
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("backend", ["torch_varlen", "flash_attn", "flash_attn_3", "flash_attn_4"])
def test_varlen_layouts_equal_plain_attention_by_the_kernels_documentation(
    backend: str, segments: Segments, heads: tuple[int, int], window: int | None
) -> None:
    states = draw(segments, heads=heads[0], kv_heads=heads[1])
    assert_equals_oracle(backend, segments, states, scale=0.3, window=window)


@pytest.mark.usefixtures("emulated_flash_attn")
@pytest.mark.parametrize("backend", ["flash_attn", "flash_attn_3"])
def test_flash_attn_caps_scores(backend: str) -> None:
    segments = SEGMENTS["three pairs of odd sizes"]
    assert_equals_oracle(backend, segments, draw(segments), scale=2.0, softcap=1.5)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("backend", ["flash_attn", "flash_attn_3", "flash_attn_4"])
def test_kernels_are_deterministic_if_torch_s_are_to_be(
    monkeypatch: pytest.MonkeyPatch, backend: str, deterministic: bool
) -> None:
    calls: list[KernelCall] = []
    modules = flash_attn_modules(lambda call: calls.append(call) or call.query)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    layout = SharedPrefixLayout(SEGMENTS["one pair"], CPU)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    BACKENDS[backend](*draw(SEGMENTS["one pair"]), layout, scale=1.0)
    assert [call.deterministic for call in calls] == [deterministic]


GPU_SEGMENTS: Segments = (
    (55, 45, 47), (1, 1, 1), (0, 33, 1), (130, 7, 64), (63, 65, 129), (40, 20, 33, 9, 17, 65, 1),
)  # fmt: skip
# Relative norm-wise errors to expect of outputs and gradients rounded to 8 and 11 bits.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


def skip_unless_served(backend: str, dtype: torch.dtype, softcap: float | None) -> None:
    """Skips with the reason that a run would give."""
    capability = torch.cuda.get_device_capability()
    try:
        choose_backend(backend, capability=capability, dtype=dtype, softcap=softcap, head_size=64)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("backend", KERNELS)
def test_gpu_kernels_equal_the_reference(
    backend: str,
    softcap: float | None,
    dtype: torch.dtype,
    heads: tuple[int, int],
    window: int | None,
) -> None:
    skip_unless_served(backend, dtype, softcap)
    segments = GPU_SEGMENTS
    states = draw(segments, heads=heads[0], kv_heads=heads[1], head_dim=64, dtype=dtype,
                  device="cuda")  # fmt: skip
    exact = tuple(s.detach().double().requires_grad_() for s in states)
    layout = SharedPrefixLayout(segments, states[0].device)
    weight = torch.randn(states[0].transpose(0, 1).shape, device="cuda", dtype=torch.float64)
    options = {"scale": 0.125, "window": window, "softcap": softcap}
    actual = run(lambda *s: BACKENDS[backend](*s, layout, **options), states, weight)
    expected = run(lambda *s: BACKENDS["reference"](*s, layout, **options), exact, weight)
    names = ("output", "query gradient", "key gradient", "value gradient")
    for name, a, e in zip(names, actual, expected, strict=True):
        tolerance = TOLERANCES[dtype] * (1 if name == "output" else 2)
        assert relative_error(a, e) < tolerance, f"{backend}: {name}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("backend", KERNELS)
def test_deterministic_gradients_repeat_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    skip_unless_served(backend, torch.bfloat16, None)
    segments = GPU_SEGMENTS * 8
    states = draw(segments, heads=8, head_dim=64, dtype=torch.bfloat16, device="cuda")
    weight = torch.randn(states[0].transpose(0, 1).shape, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        layout = SharedPrefixLayout(segments, states[0].device)
        runs = [
            run(lambda *s: BACKENDS[backend](*s, layout, scale=0.125), states, weight)
            for _ in range(5)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
