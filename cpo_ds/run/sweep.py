"""One pass of the policy over pairs without training, shared out between the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from cpo_ds.config import Config
from cpo_ds.data.pack import pack_micro_batch
from cpo_ds.data.pair_columns import comparisons_of, lengths_of
from cpo_ds.data.plan import plan_step
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.schema import PackedBatch, PairLogps, TokenizedPair


class Scorer(Protocol):
    """A policy that scores micro-batches; under ZeRO-3 all ranks call it equally often."""

    def score(self, batch: PackedBatch) -> PairLogps:
        """Returns the log-probs of the completions of each pair."""
        ...


def sweep(
    scorer: Scorer,
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
    lengths = lengths_of(pairs)
    size = pairs_at_once or len(pairs)
    for begin in range(0, len(pairs), size):
        indices = range(begin, min(begin + size, len(pairs)))
        shortest = min(indices, key=lambda index: lengths[index])
        planned = plan_step(indices, lengths, ranks.world_size, tokens_per_rank)
        for micro_batch in planned[ranks.rank]:
            batch = pack_micro_batch(pairs, micro_batch, stand_in=shortest).to(ranks.device)
            logps = scorer.score(batch)
            if batch.counted:
                yield batch, logps


def score_pairs(
    scorer: Scorer, ranks: Ranks, config: Config, pairs: Sequence[TokenizedPair]
) -> np.ndarray:
    """Log-probs of the completions: [pairs, 1 + K], float32, the same on all ranks.

    K is the largest number of rejected completions of a pair; others have zeros at their end.

    Call it as `sweep`. It packs as many pairs together as a step has.
    """
    table = torch.zeros(len(pairs), 1 + int(comparisons_of(pairs).max()), device=ranks.device)
    budget, at_once = config.batch.tokens_per_rank, config.batch.pairs
    swept = sweep(scorer, ranks, pairs, tokens_per_rank=budget, pairs_at_once=at_once)
    for batch, logps in swept:
        completions = torch.cat([logps.chosen[:, None], logps.rejected], dim=1)
        table[list(batch.pair_indices), : completions.shape[1]] = completions
    torch.distributed.all_reduce(table)  # each row is zero on all ranks but one
    return table.cpu().numpy()
