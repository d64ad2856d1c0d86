"""Shared-prefix attention: every backend against attention over the two plain sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_oracle import CPU, SEGMENTS, assert_equals_oracle, draw, oracle, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ds.model import block_attention
from cpo_ds.model.attention import registered_name
from cpo_ds.model.shared_prefix import Segments, SharedPrefixLayout, pair_mask


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "blocks"])
def test_backends_equal_plain_attention(
    backend: str, heads: tuple[int, int], segments: Segments
) -> None:
    states = draw(segments, heads=heads[0], kv_heads=heads[1])
    assert_equals_oracle(backend, segments, states, scale=0.3)


@pytest.mark.parametrize("window", [1, 2, 6, 100])
@pytest.mark.parametrize("backend", ["reference", "sdpa", "blocks"])
def test_windows(backend: str, window: int) -> None:
    segments = ((5, 3, 1), (0, 9, 4), (2, 1, 11))
    assert_equals_oracle(backend, segments, draw(segments), scale=0.3, window=window)


@pytest.mark.parametrize("kept_length", [0, 9, 100])
@pytest.mark.parametrize("block_scores", [1, 200, 10**6])
def test_blocks_of_a_few_heads_whose_weights_are_computed_again(
    monkeypatch: pytest.MonkeyPatch, kept_length: int, block_scores: int
) -> None:
    monkeypatch.setattr(block_attention, "KEPT_LENGTH", kept_length)
    monkeypatch.setattr(block_attention, "BLOCK_SCORES", block_scores)
    segments = ((5, 3, 1), (0, 9, 4), (2, 1, 11))
    states = draw(segments, heads=6, kv_heads=3)
    assert_equals_oracle("blocks", segments, states, scale=0.3, window=5)


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
    """Prefix 0 1, chosen 2 3, rejected 4 5, whose first token follows token 1."""
    rows = ["100000", "110000", "111000", "111100", "110010", "110011"]
    mask = pair_mask((2, 2, 2), window=None, device="cpu")
    assert [["01"[seen] for seen in row] for row in mask.tolist()] == [list(row) for row in rows]
    rows = ["100000", "110000", "011000", "001100", "010010", "000011"]
    mask = pair_mask((2, 2, 2), window=2, device="cpu")
    assert [["01"[seen] for seen in row] for row in mask.tolist()] == [list(row) for row in rows]


def test_varlen_layout_by_hand() -> None:
    layout = SharedPrefixLayout(((2, 1, 3), (0, 2, 1)), CPU)
    assert layout.key_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8]
    assert layout.query_ends.tolist() == [0, 3, 6, 8, 9]
    assert layout.key_ends.tolist() == [0, 3, 8, 10, 11]
    assert layout.query_ends.dtype == layout.key_ends.dtype == torch.int32


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


def test_query_and_key_ends_are_two_objects() -> None:
    """torch 2.15 may hand equal objects to a kernel that aligns causal masks to the top left."""
    layout = SharedPrefixLayout(SEGMENTS["one pair"], CPU)
    assert layout.query_ends is not layout.key_ends
    assert layout.query_ends.data_ptr() != layout.key_ends.data_ptr()


def registered(backend: str) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[registered_name(backend)]


@pytest.mark.parametrize("backend", ["reference", "sdpa", "blocks"])
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
