"""Shared-prefix attention: every backend against attention over the two plain sequences."""

from __future__ import annotations

import inspect
import itertools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import save_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ds.errors import UserError
from cpo_ds.model import load
from cpo_ds.model.attention import (
    BACKENDS,
    Segments,
    SharedPrefixLayout,
    pair_mask,
    registered_name,
)
from cpo_ds.model.attention_choice import choose_backend
from cpo_ds.recipe import parse_config

SEGMENTS: dict[str, Segments] = {
    "one pair": ((3, 4, 5),),
    "three pairs of odd sizes": ((5, 3, 1), (1, 1, 1), (13, 1, 7)),
    "no prefix": ((0, 4, 3), (0, 1, 1)),
    "long prefix, one-token branches": ((31, 1, 1),),
}
CPU = torch.device("cpu")
States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(
    segments: Segments,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> States:
    """Random query, key and value: [H, T, D], [K, T, D] twice; they collect gradients."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(map(sum, segments))

    def states(number: int) -> torch.Tensor:
        drawn = torch.randn(number, tokens, head_dim, generator=generator, dtype=torch.float64)
        return drawn.to(device, dtype).requires_grad_()

    return states(heads), states(kv_heads), states(kv_heads)


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Causal attention of one plain sequence: [L, H, D]."""
    keys, values = (s.repeat_interleave(len(query) // len(s), 0) for s in (key, value))
    scores = torch.einsum("hqd,hkd->hqk", query, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    length = query.shape[1]
    seen = [[q - (window or length) < k <= q for k in range(length)] for q in range(length)]
    scores = scores + torch.where(torch.tensor(seen), 0.0, -torch.inf)
    return torch.einsum("hqk,hkd->qhd", scores.softmax(-1), values)


def oracle(states: States, segments: Segments, **options: Any) -> torch.Tensor:
    """Each pair as two plain sequences, (prefix + chosen) and (prefix + rejected): [T, H, D]."""
    outputs, begin = [], 0
    for prefix, chosen, rejected in segments:
        branch, end = begin + prefix + chosen, begin + prefix + chosen + rejected
        first = torch.arange(begin, branch)
        second = torch.cat([torch.arange(begin, begin + prefix), torch.arange(branch, end)])
        outputs.append(plain_attention(*(s[:, first] for s in states), **options))
        outputs.append(plain_attention(*(s[:, second] for s in states), **options)[prefix:])
        begin = end
    return torch.cat(outputs)


def run(attend: Any, states: States, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and the gradients of a fixed weighting of it."""
    output = attend(*states)
    gradients = torch.autograd.grad((output.to(weight.dtype) * weight).sum(), states)
    return [output, *gradients]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    scale = expected.norm().clamp(min=1e-3)  # a window of one token leaves queries no gradient
    return ((actual - expected).norm() / scale).item()


def assert_equals_oracle(
    backend: str, segments: Segments, states: States, *, tolerance: float = 1e-9, **options: Any
) -> None:
    layout = SharedPrefixLayout(segments, states[0].device)
    weight = torch.randn(states[0].transpose(0, 1).shape, dtype=torch.float64)
    actual = run(lambda *s: BACKENDS[backend](*s, layout, **options), states, weight)
    expected = run(
        lambda *s: oracle(s, segments, **{"window": None, "softcap": None} | options),
        states,
        weight,
    )
    names = ("output", "query gradient", "key gradient", "value gradient")
    for name, a, e in zip(names, actual, expected, strict=True):
        assert a.shape == e.shape
        assert relative_error(a, e) < tolerance, f"{backend}: {name}"


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_backends_equal_plain_attention(
    backend: str, heads: tuple[int, int], segments: Segments
) -> None:
    states = draw(segments, heads=heads[0], kv_heads=heads[1])
    assert_equals_oracle(backend, segments, states, scale=0.3)


@pytest.mark.parametrize("window", [1, 2, 6, 100])
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_windows(backend: str, window: int) -> None:
    segments = ((5, 3, 1), (0, 9, 4), (2, 1, 11))
    assert_equals_oracle(backend, segments, draw(segments), scale=0.3, window=window)


def test_softcapped_scores() -> None:
    segments = ((5, 3, 2), (0, 2, 2))
    assert_equals_oracle("reference", segments, draw(segments), scale=2.0, softcap=1.5, window=4)


def test_negative_control_the_oracle_tells_layouts_windows_and_caps_apart() -> None:
    segments = ((5, 3, 2),)
    states = draw(segments)
    options = {"scale": 2.0, "window": None, "softcap": None}
    right = oracle(states, segments, **options)
    for wrong in (
        oracle(states, ((10, 0, 0),), **options),  # branches that see each other
        oracle(states, ((5, 2, 3),), **options),
        oracle(states, segments, **options | {"window": 4}),
        oracle(states, segments, **options | {"softcap": 1.5}),
        oracle(states, segments, **options | {"scale": 1.9}),
    ):
        assert relative_error(wrong, right) > 0.01


def test_mask_by_hand() -> None:
    """Prefix 0 1, chosen 2 3, rejected 4 5, which comes right after place 1."""
    rows = ["100000", "110000", "111000", "111100", "110010", "110011"]
    mask = pair_mask(2, 2, 2, window=None, device="cpu")
    assert [["01"[seen] for seen in row] for row in mask.tolist()] == [list(row) for row in rows]
    rows = ["100000", "110000", "011000", "001100", "010010", "000011"]
    mask = pair_mask(2, 2, 2, window=2, device="cpu")
    assert [["01"[seen] for seen in row] for row in mask.tolist()] == [list(row) for row in rows]


def test_varlen_layout_by_hand() -> None:
    layout = SharedPrefixLayout(((2, 1, 3), (0, 2, 1)), CPU)
    assert layout.key_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8]
    assert layout.query_ends.tolist() == [0, 3, 6, 8, 9]
    assert layout.key_ends.tolist() == [0, 3, 8, 10, 11]
    assert layout.query_ends.dtype == layout.key_ends.dtype == torch.int32


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
    """What flash-attn documents: query i of a sequence sees keys between i + shift - window[0]
    and i + shift + window[1], inclusive, where shift = key length - query length; -1: no bound.
    """
    outputs = []
    ends = list(zip(query_ends.tolist(), key_ends.tolist(), strict=True))
    for (q0, k0), (q1, k1) in itertools.pairwise(ends):
        groups = query.shape[1] // key.shape[1]
        keys, values = (s[k0:k1].repeat_interleave(groups, 1) for s in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], keys) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
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


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5), st.integers(1, 5)), min_size=1),
    st.none() | st.integers(1, 8),
)
def test_varlen_and_masks_show_the_same_keys(
    segments: list[tuple[int, int, int]], window: int | None
) -> None:
    """The two descriptions of one layout, compared without any arithmetic on states."""
    layout = SharedPrefixLayout(tuple(segments), CPU)
    total = sum(layout.lengths)
    from_masks = torch.block_diag(*(mask.int() for mask in layout.masks(window))).bool()
    from_varlen = torch.zeros(total, total, dtype=torch.bool)
    q_ends, k_ends = layout.query_ends.tolist(), layout.key_ends.tolist()
    for n in range(len(q_ends) - 1):
        shift = (k_ends[n + 1] - k_ends[n]) - (q_ends[n + 1] - q_ends[n])
        for query in range(q_ends[n + 1] - q_ends[n]):
            first = 0 if window is None else max(0, query + shift - window + 1)
            seen = layout.key_index[k_ends[n] + first : k_ends[n] + query + shift + 1]
            from_varlen[q_ends[n] + query, seen] = True
    assert torch.equal(from_masks, from_varlen)


HALF = (torch.bfloat16, torch.float16)
AMPERE, HOPPER, VOLTA, TURING = (8, 0), (9, 0), (7, 0), (7, 5)  # compute capabilities
NO_GPU = None


def install_flash_attn(monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    """Makes `import flash_attn` find a package with the kernel, or none at all."""
    fake = ModuleType("flash_attn")
    fake.flash_attn_varlen_func = lambda q, k, v, softcap=0.0: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", fake if there else None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "dtype", "flash", "softcap", "expected"),
    [
        (NO_GPU, torch.float32, False, None, "sdpa"),
        (NO_GPU, torch.bfloat16, True, None, "sdpa"),
        (NO_GPU, torch.float32, True, 50.0, "reference"),
        (HOPPER, torch.float32, True, None, "sdpa"),
        (HOPPER, torch.float32, True, 50.0, "reference"),
        *[(AMPERE, half, True, None, "flash_attn") for half in HALF],
        *[(HOPPER, half, True, 50.0, "flash_attn") for half in HALF],
        *[(AMPERE, half, False, None, "torch_varlen") for half in HALF],
        *[(HOPPER, half, False, 50.0, "reference") for half in HALF],
        *[(VOLTA, half, flash, None, "sdpa") for half in HALF for flash in (True, False)],
        (TURING, torch.float16, True, 50.0, "reference"),
    ],
)
def test_auto_picks_the_fastest_exact_backend(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    flash: bool,
    softcap: float | None,
    expected: str,
) -> None:
    install_flash_attn(monkeypatch, there=flash)
    options: dict[str, Any] = {"capability": capability, "dtype": dtype, "softcap": softcap}
    name, reason = choose_backend("auto", **options)
    assert name == expected and reason
    assert choose_backend(name, **options) == (name, "as configured")  # it may be asked for too


@pytest.mark.parametrize(
    ("requested", "capability", "dtype", "flash", "softcap", "message"),
    [
        ("flash_attn", HOPPER, torch.bfloat16, False, None, r"pip install 'cpo-ds\[flash\]'"),
        ("flash_attn", HOPPER, torch.float32, True, None, "needs a CUDA GPU and model.dtype"),
        ("torch_varlen", NO_GPU, torch.bfloat16, True, None, "needs a CUDA GPU and model.dtype"),
        ("torch_varlen", HOPPER, torch.bfloat16, True, 50.0, r"caps attention scores \(at 50\.0\)"),
        ("sdpa", NO_GPU, torch.float32, False, 30.0, "use one of reference, flash_attn, or auto"),
        (
            "flash_attn",
            VOLTA,
            torch.float16,
            True,
            None,
            r"capability 8\.0 or higher, .* has 7\.0",
        ),
        ("torch_varlen", TURING, torch.float16, True, None, "set model.attention: auto"),
    ],
)
def test_a_backend_that_cannot_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    requested: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    flash: bool,
    softcap: float | None,
    message: str,
) -> None:
    install_flash_attn(monkeypatch, there=flash)
    with pytest.raises(UserError, match=message):
        choose_backend(requested, capability=capability, dtype=dtype, softcap=softcap)


# What stands in a folder of packages -> the reason that the run gives for not using it.
UNUSABLE_FLASH_ATTN = {
    "flash-attn 4 alone": ({"flash_attn/cute/__init__.py": ""}, "flash_attn_varlen_func"),
    "a binary for another torch": (
        {"flash_attn/__init__.py": "raise ImportError('undefined symbol: _ZN2at4_ops5zeros')"},
        "undefined symbol",
    ),
    "a library that is not there": (
        {"flash_attn/__init__.py": "raise OSError('libcudart.so.12: cannot open')"},
        "libcudart",
    ),
    "a package that it needs is not there": (
        {"flash_attn/__init__.py": "import einops_of_another_age"},
        "einops_of_another_age",
    ),
    "a kernel without soft-capping": (
        {"flash_attn/__init__.py": "def flash_attn_varlen_func(q, k, v, causal=False): ..."},
        "older than 2.6",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE_FLASH_ATTN)
def test_a_flash_attn_that_cannot_be_called_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    """It is there for `find_spec`, so only the import tells."""
    files, said = UNUSABLE_FLASH_ATTN[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    options: dict[str, Any] = {"capability": HOPPER, "dtype": torch.bfloat16, "softcap": None}
    try:
        name, reason = choose_backend("auto", **options)
        assert name == "torch_varlen" and "is installed but" in reason and said in reason
        with pytest.raises(UserError, match="is installed but"):
            choose_backend("flash_attn", **options)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            del sys.modules[name]


def test_query_and_key_ends_are_two_objects() -> None:
    """torch 2.15 may hand equal objects to a kernel that aligns causal masks to the top left."""
    layout = SharedPrefixLayout(SEGMENTS["one pair"], CPU)
    assert layout.query_ends is not layout.key_ends
    assert layout.query_ends.data_ptr() != layout.key_ends.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_a_model_loads_with_each_backend_s_registered_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str, model_type: str
) -> None:
    """transformers gives some names a meaning of its own."""
    model = save_tiny_model(tmp_path, model_type)
    monkeypatch.setattr(load, "choose_backend", lambda *_, **__: (backend, "as the test wants"))
    values = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {"format": "sample"},
    }
    policy, line = load.load_policy(parse_config(values, "test"), device=CPU)
    assert line == f"attention: {backend} (as the test wants)"
    assert policy.causal_lm.config._attn_implementation == registered_name(backend)


def registered(backend: str) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[registered_name(backend)]


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_registered_function_has_transformers_shapes_and_default_scale(backend: str) -> None:
    segments = SEGMENTS["three pairs of odd sizes"]
    states = draw(segments)
    layout = SharedPrefixLayout(segments, CPU)
    batched = [s[None] for s in states]
    output, weights = registered(backend)(
        torch.nn.Identity(), *batched, None, shared_prefix=layout, sliding_window=3
    )
    expected = oracle(states, segments, scale=8**-0.5, window=3, softcap=None)
    assert weights is None and output.shape == (1, 33, 4, 8)
    assert relative_error(output[0], expected) < 1e-9


def test_registered_function_refuses_what_it_would_ignore() -> None:
    segments = SEGMENTS["one pair"]
    batched = [s[None] for s in draw(segments)]
    layout = SharedPrefixLayout(segments, CPU)
    for mask, extra in (
        (torch.ones(1), {}),
        (None, {"dropout": 0.1}),
        (None, {"s_aux": torch.ones(4)}),
    ):
        with pytest.raises(AssertionError):
            registered("sdpa")(torch.nn.Identity(), *batched, mask, shared_prefix=layout, **extra)


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
