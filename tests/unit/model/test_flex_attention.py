"""FlexAttention: its mask, its blocks, and on a CPU what torch's kernel would compute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from attention_oracle import CPU, SEGMENTS, assert_equals_oracle, draw
from helpers import VOCABULARY, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torch_flex

from cpo_ds.data.pack import pack
from cpo_ds.data.tokenize import make_pair
from cpo_ds.model import flex_attention
from cpo_ds.model.attention import BACKENDS, registered_name
from cpo_ds.model.logprobs import HeadTransform
from cpo_ds.model.policy import PolicyModel
from cpo_ds.model.shared_prefix import Segments, SharedPrefixLayout

LONG: Segments = ((55, 45, 47), (30, 20, 33), (0, 33, 1), (130, 7, 64), (200, 150, 260))


@pytest.fixture
def gradient_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets torch's uncompiled form, which refuses it on CPUs, compute a gradient."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("gradient_on_cpu")
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 40])
def test_output_and_gradients_equal_plain_attention(
    window: int | None, softcap: float | None
) -> None:
    for segments in (SEGMENTS["three pairs of odd sizes"], LONG):
        states = draw(segments, head_dim=16)
        assert_equals_oracle("flex", segments, states, scale=0.3, window=window, softcap=softcap)


@pytest.mark.usefixtures("gradient_on_cpu")
@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("mistral", {"sliding_window": 7})])
def test_a_whole_model_on_rows_of_several_rejected_texts(
    family: str, options: dict[str, Any]
) -> None:
    """Log-probs and gradients equal those with plain attention, which others hold to peers."""
    rng = np.random.RandomState(0)
    pairs = []
    for count in (1, 8, 3, 2):
        prompt = [1, *rng.randint(3, VOCABULARY, size=5).tolist()]
        texts = [
            [*prompt, 4, *rng.randint(3, VOCABULARY, size=2 + number % 5).tolist(), 2]
            for number in range(count + 1)
        ]
        pairs.append(make_pair(*((text, 6) for text in texts), direction="", origin=""))
    batch, results = pack(pairs, (0, 1, 2, 3)), []
    for backend in ("flex", "reference"):
        model = tiny_model(family, **options)
        model.set_attn_implementation(registered_name(backend))
        policy = PolicyModel(model, HeadTransform(chunk_tokens=7))
        chosen, rejected = policy(batch)
        (chosen.sum() - 0.3 * rejected.square().sum()).backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        results.append((chosen, rejected, *gradients))
    assert results[0][1].shape == (4, 8) and len(results[0]) > 10
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def dense(layout: SharedPrefixLayout, window: int | None) -> torch.Tensor:
    """The mask of all queries and keys by its function of indices."""
    index = torch.arange(sum(layout.lengths))
    mask = flex_attention.block_mask(layout, window)
    zero = torch.zeros((), dtype=torch.int64)
    return mask.mask_mod(zero, zero, index[:, None], index[None, :])


SIDE = st.integers(0, 70)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(SIDE, SIDE, SIDE), min_size=1, max_size=9).filter(
        lambda segments: any(map(sum, segments))
    ),
    st.none() | st.integers(1, 90),
)
def test_mask_and_blocks_show_the_keys_of_the_layout(
    segments: list[tuple[int, int, int]], window: int | None
) -> None:
    layout = SharedPrefixLayout(tuple(segments), CPU)
    expected = torch.block_diag(*(mask.int() for mask in layout.masks(window))).bool()
    actual = dense(layout, window)
    assert torch.equal(actual, expected)
    # A key outside the blocks of its query would be skipped.
    blocks = flex_attention.block_mask(layout, window).to_dense()[0, 0].bool()
    blocks = blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert not (expected & ~blocks[: len(expected), : len(expected)]).any()


def test_pairs_far_apart_share_no_block() -> None:
    layout = SharedPrefixLayout(((100, 20, 8),) * 10, CPU)
    blocks = flex_attention.block_mask(layout, None).to_dense()[0, 0]
    assert torch.equal(blocks, torch.eye(10, dtype=blocks.dtype))
    one = SharedPrefixLayout(((900, 200, 180),), CPU)
    assert flex_attention.block_mask(one, None).to_dense().sum() == 55
    # A query of a rejected branch sees a window's part of the prefix, beyond the chosen branch.
    assert flex_attention.block_mask(one, 128).to_dense().sum() < 45


def test_layers_share_a_mask() -> None:
    layout = SharedPrefixLayout(SEGMENTS["one pair"], CPU)
    states = [state.detach() for state in draw(SEGMENTS["one pair"])]
    made = []
    with pytest.MonkeyPatch.context() as patch:
        real = flex_attention.block_mask
        patch.setattr(flex_attention, "block_mask", lambda *a: made.append(a) or real(*a))
        patch.setattr(flex_attention, "flex_attention", lambda q, *_, **__: q)
        for window in (None, 3, None, 3):
            BACKENDS["flex"](*states, layout, scale=1.0, window=window)
    assert made == [(layout, None), (layout, 3)]


@pytest.mark.usefixtures("gradient_on_cpu")
def test_rows_of_other_lengths_are_not_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's front end, which decides that, is the same for CPUs and GPUs."""
    torch._dynamo.reset()
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    attend = flex_attention._compiled.__wrapped__()
    monkeypatch.setattr(flex_attention, "flex_attention", attend)
    counts = []
    for pairs in (5, 2, 7, 3, 4):
        segments = tuple((30 + pairs, 20 + pair, 25) for pair in range(pairs))
        states = draw(segments, head_dim=16, dtype=torch.float32)
        layout = SharedPrefixLayout(segments, CPU)
        output = BACKENDS["flex"](*states, layout, scale=0.3, softcap=1.5)
        expected = BACKENDS["reference"](*states, layout, scale=0.3, softcap=1.5)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        output.sum().backward()
        counts.append(len(compiled))
    assert counts == [1, 2, 2, 2, 2]  # for one length, then for any
