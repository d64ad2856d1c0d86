"""The plan of a step: a pure, balanced, budgeted function of seed, lengths, ranks and budget."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import random_pairs
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ds.data.plan import (
    check_budget,
    epoch_order,
    plan_step,
    step_indices,
    step_totals,
    steps_per_epoch,
)
from cpo_ds.data.tokenize import make_pair
from cpo_ds.errors import UserError
from cpo_ds.schema import StepTotals

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)
WORLD_SIZES = st.integers(1, 9)
EXTRA = st.integers(0, 8) | st.integers(0, 100)  # budget beyond the longest pair

GOLDEN_EPOCH_0 = [5, 0, 7, 4, 2, 11, 6, 3, 1, 8, 9, 10]
GOLDEN_EPOCH_1 = [11, 10, 3, 6, 5, 1, 2, 8, 9, 0, 7, 4]
GOLDEN_LARGE = [938, 68, 756, 355, 399, 208, 511, 900]
GOLDEN_PLAN = [[(3, 4), (5, 6)], [(0, 11), (2, 7)]]


def flat(plan: list[list[tuple[int, ...]]]) -> list[int]:
    return [index for rank in plan for micro_batch in rank for index in micro_batch]


def load_of(micro_batch: tuple[int, ...], lengths: np.ndarray) -> int:
    return int(sum(lengths[index] for index in micro_batch))


@settings(deadline=None)
@given(LENGTHS, WORLD_SIZES, EXTRA, st.data())
def test_a_plan_holds_every_pair_once_within_the_budget(
    lengths: list[int], world_size: int, extra: int, data: st.DataObject
) -> None:
    table, budget = np.array(lengths), max(lengths) + extra
    indices = data.draw(st.permutations(range(len(lengths))))[: len(lengths) // 2 + 1]
    plan = plan_step(indices, table, world_size, budget)
    assert sorted(flat(plan)) == sorted(indices)
    assert len(plan) == world_size
    assert len({len(rank) for rank in plan}) == 1
    assert all(load_of(m, table) <= budget for rank in plan for m in rank)
    assert all(list(m) == sorted(m) for rank in plan for m in rank)
    if any(not m for rank in plan for m in rank):
        assert len(indices) < sum(len(rank) for rank in plan)


@settings(deadline=None)
@given(LENGTHS, WORLD_SIZES, EXTRA)
def test_ranks_and_micro_batches_differ_by_one_pair_at_most(
    lengths: list[int], world_size: int, extra: int
) -> None:
    """The loads differ by at most the longest pair, since the emptiest bin always gets the next."""
    table = np.array(lengths)
    plan = plan_step(range(len(lengths)), table, world_size, max(lengths) + extra)
    loads = [[load_of(m, table) for m in rank] for rank in plan]
    flat_loads = [load for rank in loads for load in rank]
    assert max(flat_loads) - min(flat_loads) <= max(lengths)
    sums = [sum(rank) for rank in loads]
    assert max(sums) - min(sums) <= max(lengths)


@settings(deadline=None)
@given(LENGTHS, WORLD_SIZES, EXTRA)
def test_micro_batches_are_few(lengths: list[int], world_size: int, extra: int) -> None:
    """With one micro-batch fewer a rank, the step would not fit.

    That holds even if every bin were filled up to less than the longest pair."""
    table, budget = np.array(lengths), max(lengths) + extra
    per_rank = len(plan_step(range(len(lengths)), table, world_size, budget)[0])
    if per_rank > 1:
        assert sum(lengths) > (per_rank - 1) * world_size * (budget - max(lengths))


@settings(deadline=None)
@given(LENGTHS, WORLD_SIZES, EXTRA, st.randoms(use_true_random=False))
def test_a_plan_is_pure_and_does_not_depend_on_the_order_of_indices(
    lengths: list[int], world_size: int, extra: int, random: object
) -> None:
    table, budget, indices = np.array(lengths), max(lengths) + extra, list(range(len(lengths)))
    first = plan_step(indices, table, world_size, budget)
    random.shuffle(indices)  # type: ignore[attr-defined]
    assert plan_step(np.array(indices), table.copy(), world_size, budget) == first


def test_a_plan_by_hand() -> None:
    """Longest first to the emptiest of two micro-batches a rank: 26 tokens need 4 of at most 9.

    9 -> A, 6 -> B, 5 -> C, 3 -> D, then 2 -> D (3), 1 -> C or D (5 each): C comes first.
    Loads 9, 6, 6, 5; dealt back and forth: rank 0 gets A and D, rank 1 gets B and C.
    """
    lengths = np.array([1, 6, 9, 3, 5, 2])
    assert plan_step(range(6), lengths, 2, 9) == [[(2,), (3, 5)], [(1,), (0, 4)]]
    assert plan_step(range(6), lengths, 1, 26) == [[(0, 1, 2, 3, 4, 5)]]


def test_one_token_over_the_budget_is_too_many() -> None:
    """12 tokens in two micro-batches of 6 would need 3 + 3 and 2 + 2 + 2, which greedy misses.

    It gets 3 + 2 + 2 = 7, so it takes three: 3 + 2, 3 and 2 + 2. A budget of 7 needs two.
    """
    lengths = np.array([3, 3, 2, 2, 2])
    assert plan_step(range(5), lengths, 1, 6) == [[(0, 4), (2, 3), (1,)]]
    assert plan_step(range(5), lengths, 1, 7) == [[(0, 2, 4), (1, 3)]]


def test_fewer_pairs_than_ranks_leave_micro_batches_empty() -> None:
    plan = plan_step([4, 7], np.full(8, 5), 4, 100)
    assert sorted(map(sorted, plan)) == [[()], [()], [(4,)], [(7,)]]


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_an_epoch_is_a_permutation(num_pairs: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_pairs, seed, epoch)
    assert sorted(order) == list(range(num_pairs))
    assert (order == epoch_order(num_pairs, seed, epoch)).all()


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(epoch_order(50, s, e)) for s in range(4) for e in range(4)}
    assert len(orders) == 16


def test_the_order_is_frozen() -> None:
    """The order never changes, since a resumed run must see the data of its first part."""
    assert epoch_order(12, 42, 0).tolist() == GOLDEN_EPOCH_0
    assert epoch_order(12, 42, 1).tolist() == GOLDEN_EPOCH_1
    assert epoch_order(1000, 7, 3)[:8].tolist() == GOLDEN_LARGE
    lengths = np.array([7, 3, 9, 4, 8, 5, 6, 2, 9, 1, 3, 5])
    indices = step_indices(12, 8, 42, 0)
    assert plan_step(indices, lengths, 2, 16) == GOLDEN_PLAN


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 25), st.integers(0, 5))
def test_steps_tile_the_epochs(num_pairs: int, per_step: int, seed: int) -> None:
    steps = steps_per_epoch(num_pairs, per_step)
    for epoch in range(2):
        parts = [step_indices(num_pairs, per_step, seed, epoch * steps + s) for s in range(steps)]
        assert all(len(part) == per_step for part in parts[:-1])
        assert 1 <= len(parts[-1]) <= per_step
        assert (np.concatenate(parts) == epoch_order(num_pairs, seed, epoch)).all()


def test_pair_over_the_budget_is_an_error_that_names_it() -> None:
    short, longer, longest = (
        make_pair(([1] * n + [2], 1), ([1] * n + [3], 1), direction="", origin=f"pairs.jsonl:{n}")
        for n in (3, 7, 9)
    )
    check_budget([short, longest, longer], 11)
    with pytest.raises(
        UserError,
        match=r"tokens_per_rank is 8, but the pair at pairs\.jsonl:9 has 11 unique tokens "
        r"\(2 of 3 pairs.*set batch\.tokens_per_rank to 11 or more",
    ):
        check_budget([short, longest, longer], 8)


def test_totals_by_hand() -> None:
    pairs = [
        make_pair(
            ([1, 5, 6, 7, 2], 2), ([1, 5, 8, 2], 2), direction="", origin=""
        ),  # unique 7, scored 3 + 2
        make_pair(
            ([1, 5, 2], 2), ([1, 5, 9, 9, 2], 2), direction="", origin=""
        ),  # unique 6, scored 1 + 3
    ]
    together, apart = step_totals([[(0, 1)]], pairs), step_totals([[(0,)], [(1,)]], pairs)
    assert together == StepTotals(2, 2, 3 + 1, 5 + 4, 7 + 6, padded_tokens=4 * 5)
    assert apart == StepTotals(2, 2, 3 + 1, 5 + 4, 7 + 6, padded_tokens=2 * 5 + 2 * 5)
    assert step_totals([[(0,), ()], [(1,), ()]], pairs) == apart  # a stand-in counts nothing


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), WORLD_SIZES, st.integers(60, 400), st.sampled_from(["common", "none"]))
def test_totals_do_not_depend_on_the_cut(
    count: int, world_size: int, budget: int, sharing: str
) -> None:
    pairs = random_pairs(count, seed=count, sharing=sharing)
    lengths = np.array([len(pair.tokens) for pair in pairs])
    whole = step_totals([[tuple(range(count))]], pairs)
    cut = step_totals(plan_step(range(count), lengths, world_size, budget), pairs)
    assert (cut.pairs, cut.chosen_tokens, cut.scored_tokens, cut.unique_tokens) == (
        whole.pairs,
        whole.chosen_tokens,
        whole.scored_tokens,
        whole.unique_tokens,
    )
    assert cut.padded_tokens <= whole.padded_tokens
