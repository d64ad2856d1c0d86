"""Attention over plain sequences, which every shared-prefix backend is compared with."""

from __future__ import annotations

from typing import Any

import torch

from cpo_ds.model.attention import BACKENDS
from cpo_ds.model.shared_prefix import Segments, SharedPrefixLayout

SEGMENTS: dict[str, Segments] = {
    "one pair": ((3, 4, 5),),
    "three pairs of odd sizes": ((5, 3, 1), (1, 1, 1), (13, 1, 7)),
    "no prefix": ((0, 4, 3), (0, 1, 1)),
    "long prefix, one-token branches": ((31, 1, 1),),
    "up to nine branches": ((5, 3, 1, 4), (2, 1, 3, 1, 2, 1, 1, 4, 1, 2), (0, 3, 2, 2), (4, 2, 3)),
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
    """Attention over the prefix and each branch of each pair apart: [T, H, D]."""
    outputs, begin = [], 0
    for prefix, *branches in segments:
        shared, begin = torch.arange(begin, begin + prefix), begin + prefix
        for number, branch in enumerate(branches):
            own = torch.cat([shared, torch.arange(begin, begin + branch)])
            attended = plain_attention(*(s[:, own] for s in states), **options)
            outputs.append(attended if number == 0 else attended[prefix:])
            begin += branch
    return torch.cat(outputs)


def run(attend: Any, states: States, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output of `attend`, and the gradients of the output's sum weighted by `weight`."""
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
