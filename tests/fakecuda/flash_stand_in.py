"""Stand-ins for flash-attn 2, 3 and 4: the true signatures, and checks as strict as the kernels'.

They compute nothing. A call that the installed package would refuse raises here too.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.attention.varlen as varlen

SIGNATURES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("signatures.json").read_text(encoding="utf-8")
)
# Backend -> the version that its stand-in stands for.
NEWEST = {
    "flash_attn": "flash-attn 2.8.3",
    "flash_attn_3": "flash-attn 3 of August 2026",
    "flash_attn_4": "flash-attn 4.0.0 beta 27",
    "torch_varlen": "torch 2.15.0",
}
_HALF = (torch.float16, torch.bfloat16)
Bound = dict[str, Any]


def signature(version: str) -> inspect.Signature:
    """The signature of a version's function, without annotations."""
    return inspect.signature(eval(f"lambda {SIGNATURES[version]['parameters']}: None"))


@contextmanager
def install(version: str, calls: list[Bound]) -> Iterator[None]:
    """Inside it the package can be imported; each call's arguments by name go to `calls`."""
    names = SIGNATURES[version]["module"].split(".")
    if names[0] == "torch":  # it is installed
        yield
        return
    modules = {".".join(names[:depth]): ModuleType("") for depth in range(1, len(names) + 1)}
    made = {name: sys.modules.get(name, module) for name, module in modules.items()}
    for name, module in made.items():
        module.__name__, module.__spec__ = name, ModuleSpec(name, None, is_package=True)
        module.__path__ = []
    setattr(made[".".join(names)], SIGNATURES[version]["function"], _function(version, calls))
    with mock.patch.dict(sys.modules, made):
        yield


@contextmanager
def record_torch(calls: list[Bound]) -> Iterator[None]:
    """Inside it each call of torch's own kernel goes to `calls` too, bound to the newest torch."""
    accepted, plain = signature(NEWEST["torch_varlen"]), varlen.varlen_attn

    def varlen_attn(*args: Any, **kwargs: Any) -> Any:
        calls.append(dict(accepted.bind(*args, **kwargs).arguments))
        return plain(*args, **kwargs)

    varlen_attn.__signature__ = accepted  # type: ignore[attr-defined]  # the choice reads it
    with mock.patch.object(varlen, "varlen_attn", varlen_attn):
        yield


def _function(version: str, calls: list[Bound]) -> Any:
    accepted = signature(version)

    def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> Any:
        given = accepted.bind(*args, **kwargs)
        calls.append(dict(given.arguments))
        given.apply_defaults()
        check_call(given.arguments)
        states = (given.arguments[name] for name in "qkv")
        ends = (given.arguments[f"cu_seqlens_{name}"] for name in "qk")
        output, sums = _Flash.apply(*states, *ends)
        return (output, sums) if SIGNATURES[version]["returns_sums"] else output

    flash_attn_varlen_func.__signature__ = accepted  # type: ignore[attr-defined]
    return flash_attn_varlen_func


def on_cuda(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the device."""
    return tensor.is_cuda


def check_call(given: Bound) -> None:
    """Raises `ValueError` for arguments that flash-attn's C++ code refuses."""
    query, key, value = states = [given[name] for name in "qkv"]
    ends = [given["cu_seqlens_q"], given["cu_seqlens_k"]]
    longest = [given["max_seqlen_q"], given["max_seqlen_k"]]
    heads, head_size = query.shape[-2:]
    allowed = {
        "tensors must be on a CUDA device": all(map(on_cuda, [*states, *ends])),
        "query, key and value must be float16 or bfloat16": query.dtype in _HALF,
        "query, key and value must have one dtype": {t.dtype for t in states} == {query.dtype},
        "query, key and value must have 3 dimensions": all(t.dim() == 3 for t in states),
        "the last dimension must be contiguous": all(t.stride(-1) == 1 for t in states),
        "heads of at most 256, a multiple of 8": head_size <= 256 and head_size % 8 == 0,
        "key and value must have one shape": key.shape == value.shape,
        "heads of keys must divide those of queries": heads % key.shape[1] == 0,
        "ends must be int32": all(t.dtype == torch.int32 for t in ends),
        "ends must be contiguous": all(t.is_contiguous() and t.dim() == 1 for t in ends),
        "there must be as many key ends as query ends": ends[0].shape == ends[1].shape,
        "the longest lengths must be Python's int": all(type(n) is int for n in longest),
    }
    for requirement, holds in allowed.items():
        if not holds:
            raise ValueError(requirement)


# Registered operations, so that an audit counts one kernel for each.
@torch.library.custom_op("fakecuda::flash_forward", mutates_args=())
def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("tensors without data reach no kernel")


@_forward.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
    return query.new_empty(query.shape), query.new_empty(query.shape[1::-1], dtype=torch.float32)


@torch.library.custom_op("fakecuda::flash_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    raise AssertionError("tensors without data reach no kernel")


@_backward.register_fake
def _(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
) -> Any:
    return tuple(state.new_empty(state.shape) for state in (query, key, value))


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_ends: torch.Tensor,
        key_ends: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, sums = _forward(query, key, value)
        ctx.save_for_backward(query, key, value, output, sums)
        ctx.mark_non_differentiable(sums)
        return output, sums

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # once, since recomputed tensors are handed out once
        query = saved[0]
        if (grad.dtype, grad.device) != (query.dtype, query.device) or grad.stride(-1) != 1:
            raise ValueError("the gradient must be like the queries, and contiguous at the end")
        return *_backward(grad, *saved), None, None
