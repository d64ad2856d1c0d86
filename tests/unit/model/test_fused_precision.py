"""Fused layers in bfloat16, beside transformers' and in float64, and compiled ones beside eager."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_policies import ALL_LINEAR, largest_error, policy_with, results
from helpers import random_pairs, tiny_model
from torch import nn

from cpo_ds.data.pack import pack
from cpo_ds.model.fused_layers import fuse_layers, why_not_compiled
from cpo_ds.model.layer_parts import EAGER, Parts, compiled_parts, lora_linear, norm, rotate, swiglu

CPU = torch.device("cpu")
PROBLEM = why_not_compiled(CPU)
COMPILES = pytest.mark.skipif(PROBLEM is not None, reason=f"torch cannot compile: {PROBLEM}")
KINDS = [pytest.param("eager"), pytest.param("compiled", marks=COMPILES)]
SEEDS = range(6)
DROPOUT = 0.25


@pytest.fixture(autouse=True, scope="module")
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def parts_of(kind: str) -> Parts:
    return compiled_parts() if kind == "compiled" else EAGER


def drawn(*shape: int) -> torch.Tensor:
    """Random numbers that bfloat16 holds exactly, in float64."""
    return torch.randn(*shape).bfloat16().double()


def squared_errors(actual: Any, exact: Any) -> float:
    """Mean of squared relative errors, norm-wise."""
    pairs = list(zip(actual, exact, strict=True))
    return sum(((a.double() - e).norm() / e.norm()).item() ** 2 for a, e in pairs) / len(pairs)


def with_gradients(function: Any, inputs: list[torch.Tensor], dtype: torch.dtype) -> Any:
    """Outputs of a function in a precision, and the gradients by its inputs."""
    leaves = [one.to(dtype).requires_grad_() for one in inputs]
    outputs = function(*leaves)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    torch.manual_seed(99)
    weights = [drawn(*output.shape).to(dtype) for output in outputs]
    return outputs + list(torch.autograd.grad(outputs, leaves, weights))


def _plain_norm(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if states.dtype == torch.float64:
        return nn.functional.rms_norm(states, weight.shape, weight, 1e-6)
    wide = states.float()  # as transformers' norms do
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(states.dtype)


def _plain_rotation(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = _axes(query)

    def half_turned(states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, -1)
        return torch.cat((-second, first), -1)

    turned = [states * cos + half_turned(states) * sin for states in (query, key)]
    return turned[0], turned[1]


def _axes(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(states.shape[0])[:, None] * torch.logspace(0, -3, states.shape[-1] // 2)
    both = angles.repeat(1, 2)[:, None].double()
    cos, sin = (axis.bfloat16().to(states.dtype) for axis in (both.cos(), both.sin()))
    return cos, sin


def _plain_lora(states: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """PEFT's order of operations, with dropout's mask from a seed."""
    torch.manual_seed(7)
    _, mask = torch.native_dropout(states.detach(), DROPOUT, True)
    dropped = states * mask / (1 - DROPOUT)
    return states @ _frozen(states).t() + (dropped @ down.t() @ up.t()) * 1.5


def _frozen(states: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-1, 1, 24 * 32).sin().view(24, 32).bfloat16().to(states.dtype)


def _fused_lora(states: torch.Tensor, down: torch.Tensor, up: torch.Tensor, parts: Parts) -> Any:
    torch.manual_seed(7)
    return lora_linear(states, _frozen(states), None, down, up, 1.5, DROPOUT, parts)


# Part -> the fused one, the plain one, shapes of inputs.
FUNCTIONS: dict[str, tuple[Any, Any, list[tuple[int, ...]]]] = {
    "norm": (lambda s, w, parts: norm(s, w, 0.0, 1e-6, parts), _plain_norm, [(40, 32), (32,)]),
    "rotation": (
        lambda q, k, parts: rotate(q, k, *_axes(q), parts),
        _plain_rotation,
        [(40, 4, 16), (40, 2, 16)],
    ),
    "swiglu": (
        lambda g, u, parts: swiglu(g, u, parts),
        lambda g, u: nn.functional.silu(g) * u,
        [(40, 48), (40, 48)],
    ),
    "lora": (_fused_lora, _plain_lora, [(40, 32), (4, 32), (24, 4)]),
}


@pytest.mark.parametrize("part", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_in_bfloat16_errs_no_more_than_the_plain_one(kind: str, part: str) -> None:
    fused, plain, shapes = FUNCTIONS[part]
    errors = {"fused": 0.0, "plain": 0.0}
    for seed in SEEDS:
        torch.manual_seed(seed)
        inputs = [drawn(*shape) for shape in shapes]
        exact = with_gradients(plain, inputs, torch.float64)
        ours = with_gradients(lambda *i: fused(*i, parts_of(kind)), inputs, torch.bfloat16)
        theirs = with_gradients(plain, inputs, torch.bfloat16)
        errors["fused"] += squared_errors(ours, exact)
        errors["plain"] += squared_errors(theirs, exact)
    assert 0 < math.sqrt(errors["fused"] / errors["plain"]) <= 1.01, errors


@pytest.mark.parametrize("lora", [None, ALL_LINEAR], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_in_bfloat16_errs_no_more_than_transformers(
    tmp_path: Path, kind: str, lora: Any
) -> None:
    errors = {"fused": 0.0, "plain": 0.0}
    for model in range(4):  # since for a single one chance makes a difference of a few percent
        folder = tmp_path / str(model)
        tiny_model(seed=model).bfloat16().save_pretrained(folder)
        exact = policy_with(folder, "transformers", lora, dtype="bfloat16").double()
        plain = policy_with(folder, "transformers", lora, dtype="bfloat16")
        fused = policy_with(folder, kind, lora, dtype="bfloat16")
        for seed in SEEDS:
            expected = results(exact, seed=seed)
            for name, policy in (("fused", fused), ("plain", plain)):
                actual = results(policy, seed=seed)
                errors[name] += squared_errors([actual[key] for key in expected], expected.values())
    assert 0 < math.sqrt(errors["fused"] / errors["plain"]) <= 1.05, errors


@COMPILES
@pytest.mark.parametrize("lora", [None, ALL_LINEAR | {"dropout": 0.3}], ids=["full", "lora"])
def test_compiled_layers_equal_eager_ones_and_compile_once(tmp_path: Path, lora: Any) -> None:
    tiny_model().save_pretrained(tmp_path)
    eager, compiled = (policy_with(tmp_path, kind, lora) for kind in ("eager", "compiled"))
    for pairs in (5, 3):  # every part has been compiled for any number of tokens after these
        assert largest_error(results(compiled, pairs=pairs), results(eager, pairs=pairs)) < 1e-5
        with torch.no_grad():
            compiled(pack(random_pairs(pairs), tuple(range(pairs))))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for pairs in (2, 7, 11):
            assert largest_error(results(compiled, pairs=pairs), results(eager, pairs=pairs)) < 1e-5
            with torch.no_grad():
                compiled(pack(random_pairs(pairs), tuple(range(pairs))))


@COMPILES
def test_each_part_becomes_one_function() -> None:
    """Of C++, as tests have no GPU: without a break, and all loops in one."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    states, weight, factor = torch.randn(9, 32), torch.randn(32), torch.rand(9, 1)
    query, key, axis = torch.randn(9, 4, 16), torch.randn(9, 2, 16), torch.randn(9, 1, 16)
    mask = torch.rand(9, 32) < 0.5
    inputs: dict[str, tuple[Any, ...]] = {
        "norm": (states, weight, 0.0, 1e-6),
        "norm_gradient": (states, states, weight, factor, 0.0),
        "norm_weight_gradient": (states, states, factor),
        "rotated": (query, key, axis, axis),
        "swiglu": (states, states),
        "swiglu_gradient": (states, states, states),
        "add_kept": (states, states, mask),
        "kept": (states, mask),
    }
    assert inputs.keys() == vars(EAGER).keys()
    functions = {}
    for name, arguments in inputs.items():
        _, graphs = run_and_get_code(getattr(compiled_parts(), name), *arguments)
        functions[name] = [code.count("async_compile.cpp_pybinding(") for code in graphs]
    assert functions == {name: [1] for name in inputs}


def test_what_is_made_again_is_freed() -> None:
    """Neither autograd nor its hooks hold the output of SwiGLU."""
    decoder = tiny_model().get_decoder()
    fuse_layers(decoder, EAGER)
    made: list[weakref.ref[torch.Tensor]] = []
    mlp = decoder.layers[0].mlp
    mlp.down_proj.register_forward_pre_hook(
        lambda _, inputs: made.append(weakref.ref(inputs[0].untyped_storage()))
    )
    output = mlp(torch.randn(1, 5, 32, requires_grad=True))
    assert made[0]() is None
    output.sum().backward()
    assert mlp.down_proj.weight.grad is not None
