"""A sweep over pairs: each is scored once over all ranks, which make as many forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cpo_ds.ranks.ranks import Ranks
from cpo_ds.run.sweep import sweep
from cpo_ds.schema import PackedBatch, PairLogps, TokenizedPair


class CountingEngine:
    """Gives a pair's first token as its log-prob, and counts forward passes."""

    def __init__(self) -> None:
        self.passes = 0

    def score(self, batch: PackedBatch) -> PairLogps:
        self.passes += 1
        starts = np.cumsum([0, *map(sum, batch.segment_lengths)])[:-1]
        values = batch.input_ids[0, torch.from_numpy(starts)].float()
        return batch.logps(values, -values[:, None])


def pairs_of(lengths: Sequence[int]) -> list[TokenizedPair]:
    """Pairs of these numbers of tokens, each with a first token of its own."""
    tokens = [np.arange(100 * n, 100 * n + length, dtype=np.int32) for n, length in
              enumerate(lengths)]  # fmt: skip
    return [
        TokenizedPair(row, 2, (2, len(row) - 4), (2, 2), "", str(n)) for n, row in enumerate(tokens)
    ]


@pytest.mark.parametrize("pairs_at_once", [None, 1, 3, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_pair_is_scored_once(world_size: int, pairs_at_once: int | None) -> None:
    pairs = pairs_of([9, 5, 7, 6, 12, 5, 8])
    seen: list[tuple[int, float, float]] = []
    passes = []
    for rank in range(world_size):
        engine: Any = CountingEngine()
        ranks = Ranks(rank, world_size, rank, torch.device("cpu"))
        swept = sweep(engine, ranks, pairs, tokens_per_rank=16, pairs_at_once=pairs_at_once)
        for batch, logps in swept:
            assert batch.counted and sum(map(sum, batch.segment_lengths)) <= 16
            values = zip(logps.chosen.tolist(), logps.rejected[:, 0].tolist(), strict=True)
            seen += [(i, *of) for i, of in zip(batch.pair_indices, values, strict=True)]
        passes.append(engine.passes)
    assert sorted(seen) == [(i, 100.0 * i, -100.0 * i) for i in range(len(pairs))]
    assert len(set(passes)) == 1
