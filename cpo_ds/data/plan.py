"""Plans which pairs each rank packs into each micro-batch of each step.

All functions are pure functions of seed, epoch, lengths, world size and token budget. Every rank
computes the whole plan. So all ranks know a step's global denominators before its first backward
pass without communication, and checkpoints need not store any part of the plan.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence

import numpy as np

from cpo_ds.data.pair_columns import lengths_of
from cpo_ds.errors import UserError
from cpo_ds.schema import StepTotals, TokenizedPair

# Indices of pairs. If it is empty, the rank runs a stand-in that is not counted.
MicroBatch = tuple[int, ...]


@functools.lru_cache(maxsize=1)  # every step of an epoch takes a slice of the same order
def epoch_order(num_pairs: int, seed: int, epoch: int) -> np.ndarray:
    """The order of pairs in an epoch: a permutation of `range(num_pairs)`, int64.

    numpy guarantees that the streams of `RandomState` never change, so the order is the same after
    library upgrades.
    """
    order = np.random.RandomState([seed, epoch]).permutation(num_pairs)
    order.flags.writeable = False
    return order


def steps_per_epoch(num_pairs: int, pairs_per_step: int) -> int:
    """Number of optimizer steps in an epoch; the last one takes the remaining pairs."""
    return -(-num_pairs // pairs_per_step)


def step_indices(num_pairs: int, pairs_per_step: int, seed: int, step: int) -> np.ndarray:
    """Indices of the pairs of optimizer step `step`, counted from 0 over all epochs."""
    epoch, within = divmod(step, steps_per_epoch(num_pairs, pairs_per_step))
    order = epoch_order(num_pairs, seed, epoch)
    return order[within * pairs_per_step : (within + 1) * pairs_per_step]


def plan_step(
    indices: Sequence[int] | np.ndarray, lengths: np.ndarray, world_size: int, budget: int
) -> list[list[MicroBatch]]:
    """Cuts a step's pairs into micro-batches: `[rank][micro-batch]` -> pair indices.

    Every rank gets the same number of micro-batches, each of at most `budget` unique tokens. The
    number is the smallest for which greedy packing succeeds. To balance loads, the longest pair
    left always goes to the emptiest micro-batch (longest-processing-time-first). If there are fewer
    pairs than micro-batches, some stay empty. No pair may be longer than `budget`; see
    `check_budget`.
    """
    assert all(lengths[i] <= budget for i in indices)
    # Longest pairs first; the index decides between pairs of the same length.
    order = sorted((int(i) for i in indices), key=lambda i: (-int(lengths[i]), i))

    # Start with as many micro-batches as the sum needs, and add one per rank until all pairs fit.
    total = sum(int(lengths[i]) for i in order)
    per_rank = max(1, -(-total // (budget * world_size)))
    while (bins := _fill(order, lengths, world_size * per_rank, budget)) is None:
        per_rank += 1
    return _deal(bins, lengths, world_size)


def _fill(
    order: list[int], lengths: np.ndarray, num_bins: int, budget: int
) -> list[list[int]] | None:
    """Puts each pair into the emptiest bin; None if a bin gets more than `budget` tokens."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, b) for b in range(num_bins)]
    for index in order:
        load, emptiest = heapq.heappop(heap)
        load += int(lengths[index])
        if load > budget:
            return None
        bins[emptiest].append(index)
        heapq.heappush(heap, (load, emptiest))
    return bins


def _deal(bins: list[list[int]], lengths: np.ndarray, world_size: int) -> list[list[MicroBatch]]:
    """Deals bins to ranks, heaviest first and back and forth, so that sums balance too."""
    heaviest_first = sorted(bins, key=lambda b: -sum(int(lengths[i]) for i in b))
    ranks: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    for position, pairs in enumerate(heaviest_first):
        turn, offset = divmod(position, world_size)
        rank = offset if turn % 2 == 0 else world_size - 1 - offset
        ranks[rank].append(tuple(sorted(pairs)))
    return ranks


def check_budget(pairs: Sequence[TokenizedPair], budget: int) -> None:
    """Raises `UserError` if the largest pair does not fit into one micro-batch."""
    lengths = lengths_of(pairs)
    largest = pairs[int(np.argmax(lengths))]  # the first of several
    if len(largest.tokens) > budget:
        too_long, many = int((lengths > budget).sum()), largest.num_comparisons
        of_many = f" with its {many} rejected completions" if many > 1 else ""
        fewer = ", or give it fewer rejected completions" if many > 1 else ""
        raise UserError(
            f"batch.tokens_per_rank is {budget}, but the pair at {largest.origin} has "
            f"{len(largest.tokens)} unique tokens{of_many} ({too_long} of {len(pairs)} pairs are "
            f"over the budget); set batch.tokens_per_rank to {len(largest.tokens)} or more, or "
            f"lower data.max_tokens to drop long pairs{fewer}."
        )


def step_totals(
    micro_batches: list[list[MicroBatch]], pairs: Sequence[TokenizedPair]
) -> StepTotals:
    """Counts pairs and tokens over the global batch of a step."""
    packed = [[pairs[i] for i in micro_batch] for rank in micro_batches for micro_batch in rank]
    flat = [pair for micro_batch in packed for pair in micro_batch]
    scored = [pair.num_scored for pair in flat]
    return StepTotals(
        pairs=len(flat),
        comparisons=sum(pair.num_comparisons for pair in flat),
        chosen_tokens=sum(chosen for chosen, *_ in scored),
        scored_tokens=sum(map(sum, scored)),
        unique_tokens=sum(len(pair.tokens) for pair in flat),
        padded_tokens=sum(
            2
            * sum(pair.num_comparisons for pair in together)
            * max(pair.longest_sequence for pair in together)
            for together in packed
            if together
        ),
    )
