"""Parts of a layer with gradients of their own, against autograd through the plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cpo_ds.model.layer_parts import EAGER, lora_linear, made_again, norm, rotate, swiglu

TOKENS, FEATURES, HEADS, HEAD_SIZE, RANK = 5, 6, 3, 4, 2


def draw(*shape: int, seed: int = 0, **options: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_(options.get("trained", True))


def assert_same_gradients(actual: torch.Tensor, expected: torch.Tensor, *inputs: object) -> None:
    torch.testing.assert_close(actual, expected)
    weight = draw(*actual.shape, seed=9, trained=False)
    trained = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
    gradients = (torch.autograd.grad((out * weight).sum(), trained) for out in (actual, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("trained", [True, False])
def test_norm(offset: float, trained: bool) -> None:
    states, weight = draw(1, TOKENS, FEATURES), draw(FEATURES, trained=trained)
    expected = F.rms_norm(states, (FEATURES,), weight + offset, eps=1e-3)
    assert_same_gradients(norm(states, weight, offset, 1e-3, EAGER), expected, states, weight)


def test_rotation() -> None:
    angles = draw(TOKENS, 1, HEAD_SIZE // 2, trained=False).repeat(1, 1, 2)
    query, key = draw(TOKENS, HEADS, HEAD_SIZE), draw(TOKENS, 1, HEAD_SIZE)

    def turned(states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, -1)
        return states * angles.cos() + torch.cat((-second, first), -1) * angles.sin()

    turned_query, turned_key = rotate(query, key, angles.cos(), angles.sin(), EAGER)
    assert_same_gradients(turned_query, turned(query), query)
    turned_query, turned_key = rotate(query, key, angles.cos(), angles.sin(), EAGER)
    assert_same_gradients(turned_key, turned(key), key)


def test_swiglu() -> None:
    gate, up = draw(1, TOKENS, FEATURES), draw(1, TOKENS, FEATURES, seed=1)
    assert_same_gradients(swiglu(gate, up, EAGER), F.silu(gate) * up, gate, up)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_lora_linear(dropout: float, bias: bool) -> None:
    states = draw(1, TOKENS, FEATURES)
    weight = draw(HEADS, FEATURES, trained=False)
    added = draw(HEADS, trained=False) if bias else None
    down, up = draw(RANK, FEATURES), draw(HEADS, RANK)
    torch.manual_seed(3)
    actual = lora_linear(states, weight, added, down, up, 1.7, dropout, EAGER)
    torch.manual_seed(3)
    dropped = states
    if dropout:
        _, mask = torch.native_dropout(states[0].detach(), dropout, True)
        assert 0 < mask.sum() < mask.numel()
        dropped = states * mask / (1 - dropout)
    expected = F.linear(states, weight, added) + 1.7 * (dropped @ down.t() @ up.t())
    assert_same_gradients(actual, expected, states, down, up)


def test_a_tensor_that_is_made_again_is_not_kept() -> None:
    states, weight = draw(TOKENS, FEATURES), draw(HEADS, FEATURES)
    doubled = states * 2
    calls = []

    def make() -> torch.Tensor:
        calls.append(1)
        return states.detach() * 2

    with made_again(doubled, make):
        output = F.linear(doubled, weight)
    with torch.no_grad():
        doubled.zero_()  # had it been kept, the gradient would be zero
    assert_same_gradients(output, F.linear(states * 2, weight), states, weight)
    assert calls == [1]
