"""One pass of the policy over pairs without training, shared out between the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cpo_ds.data.pack import pack_micro_batch
from cpo_ds.data.plan import plan_step
from cpo_ds.engine.engine import Engine
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.schema import PackedBatch, PairLogps, TokenizedPair


def sweep(
    engine: Engine,
    ranks: Ranks,
    pairs: Sequence[TokenizedPair],
    *,
    tokens_per_rank: int,
    pairs_at_once: int | None = None,
) -> Iterator[tuple[PackedBatch, PairLogps]]:
    """Yields this rank's micro-batches with their log-probs; over all ranks, each pair once.

    `pairs_at_once` pairs (all) are packed into micro-batches together. Call it inside
    `engine.evaluating()`, on all ranks, and consume it to the end: under ZeRO-3 all ranks must run
    the same number of forward passes.
    """
    lengths = np.array([len(pair.tokens) for pair in pairs])
    size = pairs_at_once or len(pairs)
    for begin in range(0, len(pairs), size):
        indices = range(begin, min(begin + size, len(pairs)))
        shortest = min(indices, key=lambda index: lengths[index])
        planned = plan_step(indices, lengths, ranks.world_size, tokens_per_rank)
        for micro_batch in planned[ranks.rank]:
            batch = pack_micro_batch(pairs, micro_batch, stand_in=shortest).to(ranks.device)
            logps = engine.score(batch)
            if batch.counted:
                yield batch, logps
