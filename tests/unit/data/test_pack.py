"""Pairs -> one row: positions, targets and their weights, by hand and against plain sequences."""

from __future__ import annotations

from collections import Counter

import torch
from helpers import random_pairs, sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ds.data.pack import pack, pack_micro_batch
from cpo_ds.data.tokenize import make_pair
from cpo_ds.schema import PackedBatch, TokenizedPair

# A target as (predicting position in the row, token, pair, counts for chosen, for rejected).
Scored = list[tuple[int, int, int, float, float]]


def scored(batch: PackedBatch) -> Scored:
    return list(
        zip(
            batch.score_positions.tolist(),
            batch.score_targets.tolist(),
            batch.score_pairs.tolist(),
            batch.score_in_chosen.tolist(),
            batch.score_in_rejected[:, 0].tolist(),
            strict=True,
        )
    )


def test_shared_prompt_by_hand() -> None:
    """Prompt 1 10, chosen 20 2, rejected 30 31 2.

    row       1 10 | 20  2 | 30 31  2
    place     0  1 |  2  3 |  4  5  6
    position  0  1 |  2  3 |  2  3  4
    """
    pair = make_pair(([1, 10, 20, 2], 2), ([1, 10, 30, 31, 2], 2), direction="", origin="")
    batch = pack([pair], (0,))
    assert batch.input_ids.tolist() == [[1, 10, 20, 2, 30, 31, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch.segment_lengths == ((2, 2, 3),)
    assert scored(batch) == [
        (1, 20, 0, 1, 0),  # the prompt's last token predicts the first of chosen,
        (2, 2, 0, 1, 0),
        (1, 30, 0, 0, 1),  # and of rejected
        (4, 31, 0, 0, 1),
        (5, 2, 0, 0, 1),
    ]
    assert (batch.num_chosen_tokens.tolist(), batch.num_rejected_tokens[:, 0].tolist()) == (
        [2],
        [3],
    )


def test_completions_that_begin_alike_by_hand() -> None:
    """Prompt 1, both completions begin 20 21, then chosen 2, rejected 22 2."""
    pair = make_pair(([1, 20, 21, 2], 1), ([1, 20, 21, 22, 2], 1), direction="", origin="")
    batch = pack([pair], (0,))
    assert batch.input_ids.tolist() == [[1, 20, 21, 2, 22, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 4]]
    assert scored(batch) == [
        (0, 20, 0, 1, 1),  # computed once, counted for both
        (1, 21, 0, 1, 1),
        (2, 2, 0, 1, 0),
        (2, 22, 0, 0, 1),
        (4, 2, 0, 0, 1),
    ]
    assert (batch.num_chosen_tokens.tolist(), batch.num_rejected_tokens[:, 0].tolist()) == (
        [3],
        [4],
    )


def test_different_starts_after_a_merge_by_hand() -> None:
    """Chosen 1 5 | 6 7 2 and rejected 1 5 6 | 8 2: token 6 is scored for chosen alone."""
    pair = make_pair(([1, 5, 6, 7, 2], 2), ([1, 5, 6, 8, 2], 3), direction="", origin="")
    batch = pack([pair], (0,))
    assert batch.segment_lengths == ((3, 2, 2),)
    assert scored(batch) == [
        (1, 6, 0, 1, 0),
        (2, 7, 0, 1, 0),
        (3, 2, 0, 1, 0),
        (2, 8, 0, 0, 1),
        (5, 2, 0, 0, 1),
    ]
    swapped = pack(
        [make_pair(([1, 5, 6, 8, 2], 3), ([1, 5, 6, 7, 2], 2), direction="", origin="")], (0,)
    )
    assert scored(swapped)[0] == (1, 6, 0, 0, 1)


def test_sharing_nothing_by_hand() -> None:
    pair = make_pair(
        ([1, 10, 20, 2], 2), ([1, 10, 30, 2], 2), direction="", origin="", sharing="none"
    )
    batch = pack([pair], (0,))
    assert batch.input_ids.tolist() == [[1, 10, 20, 2, 1, 10, 30, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch.segment_lengths == ((0, 4, 4),)
    assert scored(batch) == [
        (1, 20, 0, 1, 0),
        (2, 2, 0, 1, 0),
        (5, 30, 0, 0, 1),
        (6, 2, 0, 0, 1),
    ]


def test_pairs_lie_end_to_end_and_are_numbered_in_the_given_order() -> None:
    pairs = [
        make_pair(([1, 5, 2], 1), ([1, 6, 2], 1), direction="", origin=""),
        make_pair(([1, 9, 2], 1), ([1, 2], 1), direction="", origin=""),
    ]
    batch = pack(pairs, (1, 0))
    assert batch.pair_indices == (1, 0)
    assert batch.num_pairs == 2 and batch.counted
    assert batch.input_ids.tolist() == [[1, 9, 2, 2, 1, 5, 2, 6, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 1, 0, 1, 2, 1, 2]]
    assert scored(batch) == [
        (0, 9, 0, 1, 0),
        (1, 2, 0, 1, 0),
        (0, 2, 0, 0, 1),
        (4, 5, 1, 1, 0),
        (5, 2, 1, 1, 0),
        (4, 6, 1, 0, 1),
        (7, 2, 1, 0, 1),
    ]
    dtypes = {name: t.dtype for name, t in vars(batch).items() if isinstance(t, torch.Tensor)}
    whole = ("input_ids", "position_ids", "score_positions", "score_targets", "score_pairs")
    assert {name for name, dtype in dtypes.items() if dtype == torch.int64} == set(whole)
    assert set(dtypes.values()) == {torch.int64, torch.float32}


def plain_scored(pairs: list[TokenizedPair], side: int) -> Counter:
    """(pair, tokens up to the predicting one, target) for each scored token of one side."""
    counts: Counter = Counter()
    for number, pair in enumerate(pairs):
        tokens = sequences(pair)[side]
        start = pair.starts[side]
        for index in range(start, len(tokens)):
            counts[number, tuple(tokens[:index]), tokens[index]] += 1
    return counts


def packed_scored(batch: PackedBatch, side: int) -> Counter:
    """Scored tokens of one side, read back from the packed row by segments and position ids."""
    row, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    counts: Counter = Counter()
    starts = [0]
    for segment in batch.segment_lengths:
        starts.append(starts[-1] + sum(segment))
    for index, target, number, *weights in scored(batch):
        prefix, chosen, _ = batch.segment_lengths[number]
        begin, branch = starts[number], starts[number] + prefix + chosen
        seen = row[begin : index + 1]
        if index >= branch:
            seen = row[begin : begin + prefix] + row[branch : index + 1]
        assert len(seen) == positions[index] + 1
        if weights[side]:
            counts[number, tuple(seen), target] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(1, 5),
    sharing=st.sampled_from(["common", "prompt", "none"]),
    earlier=st.lists(st.booleans(), min_size=10, max_size=10),
)
def test_each_side_is_scored_as_its_plain_sequence(
    seed: int, count: int, sharing: str, earlier: list[bool]
) -> None:
    pairs = []
    for number, pair in enumerate(random_pairs(count, seed=seed)):
        chosen, rejected = sequences(pair)  # some with a start one token earlier, as after a merge
        starts = pair.starts[0] - earlier[2 * number], pair.starts[1]
        rejected_start = max(1, starts[1] - earlier[2 * number + 1])
        made = (chosen, max(1, starts[0])), (rejected, rejected_start)
        pairs.append(make_pair(*made, direction="", origin="", sharing=sharing))  # type: ignore[arg-type]
    batch = pack(pairs, tuple(range(count)))
    for side, counts in ((0, batch.num_chosen_tokens), (1, batch.num_rejected_tokens[:, 0])):
        expected = plain_scored(pairs, side)
        assert packed_scored(batch, side) == expected
        per_pair = Counter(number for number, *_ in expected.elements())
        assert counts.tolist() == [per_pair[number] for number in range(count)]
    together = batch.score_in_chosen + batch.score_in_rejected[:, 0]
    assert together.min() >= 1  # the head runs on nothing that does not count
    assert batch.input_ids.numel() == sum(len(pair.tokens) for pair in pairs)


def test_empty_micro_batch_becomes_a_stand_in_that_does_not_count() -> None:
    pairs = random_pairs(3)
    stand_in = pack_micro_batch(pairs, (), stand_in=2)
    assert not stand_in.counted and stand_in.pair_indices == (2,)
    assert torch.equal(stand_in.input_ids, pack(pairs, (2,)).input_ids)
    real = pack_micro_batch(pairs, (0, 1), stand_in=2)
    assert real.counted and real.pair_indices == (0, 1)


def test_to_moves_every_tensor() -> None:
    batch = pack(random_pairs(2), (0, 1)).to(torch.device("meta"))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.pair_indices == (0, 1) and batch.num_pairs == 2
