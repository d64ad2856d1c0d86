"""The gather of keys and values for both branches, and its gradient."""

from __future__ import annotations

import pytest
import torch
from attention_oracle import CPU, SEGMENTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from cpo_ds.model.shared_prefix import Segments, SharedPrefixLayout, gather_keys


def gradient(gather: object, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    gathered = gather(states)  # type: ignore[operator]
    return torch.autograd.grad(gathered, states, weight)[0]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.integers(0, 5)), min_size=1).filter(
        lambda segments: any(map(sum, segments))
    ),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_gather_and_gradient_equal_those_of_index_select(
    segments: list[tuple[int, int, int]], dtype: torch.dtype
) -> None:
    layout = SharedPrefixLayout(tuple(segments), CPU)
    states = torch.randn(sum(layout.lengths), 2, 3, dtype=dtype, requires_grad=True)
    expected = states.index_select(0, layout.key_index)
    assert torch.equal(gather_keys(states, layout), expected)
    weight = torch.randn_like(expected)
    plain = gradient(lambda s: s.index_select(0, layout.key_index), states, weight)
    assert torch.equal(gradient(lambda s: gather_keys(s, layout), states, weight), plain)


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_gradient_by_finite_differences(segments: Segments) -> None:
    layout = SharedPrefixLayout(segments, CPU)
    states = torch.randn(sum(layout.lengths), 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: gather_keys(s, layout), states)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_are_rounded_once(dtype: torch.dtype) -> None:
    layout = SharedPrefixLayout(((40, 3, 5), (0, 4, 4), (100, 1, 1)), CPU)
    states = torch.randn(sum(layout.lengths), 4, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(len(layout.key_index), 4, 16, dtype=dtype)
    actual = gradient(lambda s: gather_keys(s, layout), states, weight)
    again = gradient(lambda s: gather_keys(s, layout), states, weight)
    exact = torch.zeros(states.shape, dtype=torch.float64)
    exact.index_add_(0, layout.key_index, weight.double())
    bound = torch.finfo(dtype).eps / 2  # a processor may round ties away from zero
    assert actual.dtype == dtype and torch.equal(actual, again)
    assert ((actual.double() - exact).abs() <= exact.abs() * bound).all()


def test_the_backward_pass_adds_nothing_atomically() -> None:
    """Operations that add where several sources meet are in no fixed order on a GPU."""
    layout = SharedPrefixLayout(SEGMENTS["three pairs of odd sizes"], CPU)
    states = torch.randn(sum(layout.lengths), 2, 4, requires_grad=True)
    gathered = gather_keys(states, layout)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        gathered.backward(torch.ones_like(gathered))
    names = {event.key for event in profile.key_averages()}
    assert "aten::_embedding_bag_forward_only" in names or "aten::embedding_bag" in names
    assert not {name for name in names if "index_add" in name or "scatter" in name}


def test_gradient_under_recomputation() -> None:
    layout = SharedPrefixLayout(SEGMENTS["three pairs of odd sizes"], CPU)
    states = torch.randn(sum(layout.lengths), 2, 4, dtype=torch.float64, requires_grad=True)

    def layer(states: torch.Tensor) -> torch.Tensor:
        return gather_keys(states.sin(), layout).square().sum()

    plain = torch.autograd.grad(layer(states), states)[0]
    recomputed = torch.autograd.grad(checkpoint(layer, states, use_reentrant=False), states)[0]
    assert torch.equal(plain, recomputed)


def test_it_runs_on_tensors_without_data() -> None:
    with FakeTensorMode():
        layout = SharedPrefixLayout(SEGMENTS["three pairs of odd sizes"], CPU)
        states = torch.empty(33, 2, 4, dtype=torch.bfloat16, requires_grad=True)
        gathered = gather_keys(states, layout)
        gathered.sum().backward()
    assert gathered.shape == (len(layout.key_index), 2, 4)
    assert states.grad is not None and states.grad.dtype == torch.bfloat16
