"""Calls of attention kernels fit the signatures of every version that may be installed."""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from flash_stand_in import SIGNATURES, check_call, signature

from cpo_ds.model.attention import BACKENDS
from cpo_ds.model.shared_prefix import SharedPrefixLayout

# Backend -> the beginning of the names of its versions.
VERSIONS = {
    "flash_attn": "flash-attn 2",
    "flash_attn_3": "flash-attn 3",
    "flash_attn_4": "flash-attn 4",
    "torch_varlen": "torch ",
}
CASES = [
    (backend, version)
    for backend, beginning in VERSIONS.items()
    for version in SIGNATURES
    if backend in BACKENDS and version.startswith(beginning)
]
SEGMENTS = ((3, 4, 5), (0, 2, 2))
CAPS_SCORES = ("flash_attn", "flash_attn_3")


class Called(Exception):
    """Carries the arguments with which a kernel was called."""


def recorded_call(
    backend: str, version: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Any:
    """Positional and keyword arguments with which the backend calls the version's kernel."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise Called(args, kwargs)

    *parents, _ = SIGNATURES[version]["module"].split(".")
    if parents[:1] != ["torch"]:
        for depth in range(len(parents)):
            name = ".".join(parents[: depth + 1])
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        name = SIGNATURES[version]["module"]
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = sys.modules[SIGNATURES[version]["module"]]
    monkeypatch.setattr(module, SIGNATURES[version]["function"], kernel, raising=False)
    tokens = sum(map(sum, SEGMENTS))
    query, key, value = (torch.zeros(h, tokens, 8, dtype=torch.bfloat16) for h in (4, 2, 2))
    layout = SharedPrefixLayout(SEGMENTS, torch.device("cpu"))
    with pytest.raises(Called) as called:
        BACKENDS[backend](query, key, value, layout, scale=0.5, **options)
    return called.value.args


@pytest.mark.parametrize(("backend", "version"), CASES)
@pytest.mark.parametrize("window", [None, 7])
def test_each_argument_exists_in_each_version(
    monkeypatch: pytest.MonkeyPatch, backend: str, version: str, window: int | None
) -> None:
    options = {"window": window} | ({"softcap": 50.0} if backend in CAPS_SCORES else {})
    args, kwargs = recorded_call(backend, version, monkeypatch, **options)
    given = signature(version).bind(*args, **kwargs).arguments
    # The name of an argument says what it is, so that no other version's order goes unseen.
    ends = [given[name] for name in given if name.startswith(("cu_seq_", "cu_seqlens_"))]
    assert [end.tolist() for end in ends] == [[0, 7, 12, 14, 16], [0, 7, 15, 17, 19]]
    longest = [given[name] for name in given if name.startswith("max_")]
    assert longest == [7, 8] and all(type(length) is int for length in longest)
    assert {given.get("scale"), given.get("softmax_scale")} == {None, 0.5}
    # A causal mask that ends at the bottom right: causal and a window to the left alone.
    unlimited = None if backend == "flash_attn_4" else -1
    assert given["window_size"] == (unlimited if window is None else window - 1, 0)
    assert given.get("causal", True)


@pytest.mark.parametrize(("backend", "version"), CASES)
def test_ends_of_queries_and_keys_are_two_tensors(
    monkeypatch: pytest.MonkeyPatch, backend: str, version: str
) -> None:
    """From torch 2.15 one tensor for both means equal lengths, aligned at the top left."""
    args, kwargs = recorded_call(backend, version, monkeypatch)
    given = signature(version).bind(*args, **kwargs).arguments
    first, second = [given[name] for name in given if name.startswith(("cu_seq_", "cu_seqlens_"))]
    assert first is not second


def test_ends_are_two_tensors_when_they_are_equal() -> None:
    layout = SharedPrefixLayout(((0, 3, 3),), torch.device("cpu"))
    assert torch.equal(layout.query_ends, layout.key_ends)
    assert layout.query_ends is not layout.key_ends


def test_the_file_knows_the_installed_torch() -> None:
    installed = importlib.metadata.version("torch").partition("+")[0]
    if f"torch {installed}" not in SIGNATURES:
        pytest.skip(f"signatures.json has no torch {installed}")
    actual = inspect.signature(torch.nn.attention.varlen.varlen_attn).parameters.values()
    recorded = signature(f"torch {installed}").parameters.values()
    assert [(p.name, p.kind, p.default) for p in actual] == [
        (p.name, p.kind, p.default) for p in recorded
    ]


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"q": torch.zeros(4, 4, 8)}, "float16 or bfloat16"),
        ({"k": torch.zeros(4, 2, 8, dtype=torch.float16)}, "one dtype"),
        ({"q": torch.zeros(4, 8, 4, dtype=torch.bfloat16).transpose(1, 2)}, "last dimension"),
        ({"q": torch.zeros(4, 3, 8, dtype=torch.bfloat16)}, "divide those of queries"),
        ({"q": torch.zeros(4, 4, 264, dtype=torch.bfloat16)}, "at most 256"),
        ({"cu_seqlens_k": torch.tensor([0, 4])}, "int32"),
        ({"cu_seqlens_q": torch.zeros(4, dtype=torch.int32)[::2]}, "contiguous"),
        ({"max_seqlen_k": torch.tensor(4)}, "Python's int"),
    ],
)
def test_the_stand_in_is_as_strict_as_the_kernel(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], refusal: str
) -> None:
    monkeypatch.setattr("flash_stand_in.on_cuda", lambda tensor: True)
    key = torch.zeros(4, 2, 8, dtype=torch.bfloat16)
    ends = torch.tensor([0, 4], dtype=torch.int32)
    good = {"q": torch.zeros(4, 4, 8, dtype=torch.bfloat16), "k": key, "v": key}
    good |= {"cu_seqlens_q": ends, "cu_seqlens_k": ends, "max_seqlen_q": 4, "max_seqlen_k": 4}
    check_call(good)
    with pytest.raises(ValueError, match=refusal):
        check_call(good | changes)
