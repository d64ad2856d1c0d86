"""Metrics over the held-out pairs, all together and by direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cpo_ds.config import Config
from cpo_ds.data.pair_columns import count_directions
from cpo_ds.data.plan import MicroBatch, step_totals
from cpo_ds.engine.engine import Engine
from cpo_ds.losses import pair_terms
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.run.metrics import COLUMNS, pair_columns, summarize
from cpo_ds.run.sweep import sweep
from cpo_ds.schema import StepTotals, TokenizedPair


def measure(
    engine: Engine, ranks: Ranks, config: Config, pairs: Sequence[TokenizedPair]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[float]]:
    """The metrics over all pairs and those of each direction, and the reward margin of each pair.

    A pair with several rejected completions has the mean of its margins.
    All ranks share the work.
    """
    # Sum the columns of each direction over this rank's pairs, then over all ranks.
    directions = sorted(count_directions(pairs))
    sums = torch.zeros(len(directions), len(COLUMNS), dtype=torch.float64, device=ranks.device)
    margins = torch.zeros(len(pairs), dtype=torch.float64, device=ranks.device)
    with engine.evaluating():
        for batch, logps in sweep(
            engine, ranks, pairs, tokens_per_rank=config.batch.tokens_per_rank
        ):
            rows = [directions.index(pairs[index].direction) for index in batch.pair_indices]
            columns = pair_columns(pair_terms(logps, config.loss), logps)
            sums.index_add_(0, torch.tensor(rows, device=sums.device), columns)
            comparisons = (batch.comparison_shares > 0).sum(1)
            of_pairs = columns[:, COLUMNS.index("margin")] / comparisons
            margins[list(batch.pair_indices)] = of_pairs
    engine.sum_over_ranks(sums)
    engine.sum_over_ranks(margins)  # each is zero on all ranks but one

    # Average over the pairs of each direction, then over all pairs.
    by_direction = {}
    of_direction: dict[str, list[TokenizedPair]] = {name: [] for name in directions}
    for pair in pairs:
        of_direction[pair.direction].append(pair)
    for direction, row in zip(directions, sums.tolist(), strict=True):
        totals = _totals(of_direction[direction])
        by_direction[direction or "unknown"] = {"pairs": totals.pairs} | summarize(
            row, totals, config.loss
        )
    metrics = summarize(sums.sum(0).tolist(), _totals(pairs), config.loss)
    return metrics, by_direction, margins.tolist()


def _totals(pairs: Sequence[TokenizedPair]) -> StepTotals:
    """Counts over pairs, each in a micro-batch of its own."""
    one_each: list[MicroBatch] = [(index,) for index in range(len(pairs))]
    return step_totals([one_each], pairs)
