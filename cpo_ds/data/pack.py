"""Packs tokenized pairs into a `PackedBatch`: one row of tokens without padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cpo_ds.data.plan import MicroBatch
from cpo_ds.schema import PackedBatch, TokenizedPair


def pack(
    pairs: Sequence[TokenizedPair], indices: MicroBatch, *, counted: bool = True
) -> PackedBatch:
    """Packs the pairs at `indices` end to end; `indices` must not be empty."""
    # Find the scored tokens of each pair; `offsets` are the places of the pairs in the row.
    selected = [pairs[i] for i in indices]
    offsets = np.cumsum([0] + [len(pair.tokens) for pair in selected])
    scored = [
        _scored(pair, offset, number)
        for number, (pair, offset) in enumerate(zip(selected, offsets[:-1], strict=True))
    ]
    positions, targets, numbers, in_chosen, in_rejected = (
        np.concatenate(column) for column in zip(*scored, strict=True)
    )

    # Join tokens, positions and scored tokens of all pairs.
    return PackedBatch(
        input_ids=_row([pair.tokens for pair in selected]),
        position_ids=_row([_position_ids(pair) for pair in selected]),
        segment_lengths=tuple((p.num_prefix, p.num_chosen, p.num_rejected) for p in selected),
        score_positions=torch.from_numpy(positions),
        score_targets=torch.from_numpy(targets.astype(np.int64)),
        score_pairs=torch.from_numpy(numbers),
        score_in_chosen=torch.from_numpy(in_chosen.astype(np.float32)),
        score_in_rejected=torch.from_numpy(in_rejected.astype(np.float32)),
        num_chosen_tokens=torch.tensor([float(p.num_chosen_scored) for p in selected]),
        num_rejected_tokens=torch.tensor([float(p.num_rejected_scored) for p in selected]),
        pair_indices=tuple(int(i) for i in indices),
        counted=counted,
        reference_logps=_reference_logps(selected),
    )


def pack_micro_batch(
    pairs: Sequence[TokenizedPair], micro_batch: MicroBatch, stand_in: int
) -> PackedBatch:
    """Packs a planned micro-batch; for an empty one it packs pair `stand_in`, not counted.

    All ranks must run the same number of forward and backward passes, since ZeRO-3 gathers weights
    in each. So a rank without pairs runs one that does not count.
    """
    if micro_batch:
        return pack(pairs, micro_batch)
    return pack(pairs, (stand_in,), counted=False)


def _reference_logps(pairs: Sequence[TokenizedPair]) -> torch.Tensor | None:
    """The precomputed log-probs under the reference model, [P, 2]; None if there are none."""
    known = [pair.reference_logps for pair in pairs if pair.reference_logps is not None]
    return torch.tensor(known, dtype=torch.float32) if known else None


def _row(parts: list[np.ndarray]) -> torch.Tensor:
    """Joins arrays into one row, [1, T] int64."""
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))[None]


def _position_ids(pair: TokenizedPair) -> np.ndarray:
    """Positions 0, 1, ... of prefix and chosen branch; the rejected branch continues the prefix."""
    chosen_end = pair.num_prefix + pair.num_chosen
    rejected = np.arange(pair.num_prefix, pair.num_prefix + pair.num_rejected)
    return np.concatenate([np.arange(chosen_end), rejected])


def _scored(pair: TokenizedPair, offset: int, number: int) -> tuple[np.ndarray, ...]:
    """Columns (position, target, pair number, in chosen, in rejected), one entry per target.

    The target at index i of a sequence is predicted at i - 1. For the first token of both branches
    that is the last token of the prefix, so one position may have two targets.
    """
    # Indices of the targets: in the prefix, in prefix + chosen and in prefix + rejected.
    prefix, chosen_end = pair.num_prefix, pair.num_prefix + pair.num_chosen
    shared = np.arange(min(pair.chosen_start, pair.rejected_start), prefix)
    chosen = np.arange(max(pair.chosen_start, prefix), chosen_end)
    rejected = np.arange(max(pair.rejected_start, prefix), prefix + pair.num_rejected)

    # Positions in the row, in which the rejected branch comes after the chosen branch.
    shift = pair.num_chosen  # from an index in prefix + rejected to the index in the row
    rejected_predictors = np.where(rejected == prefix, prefix - 1, rejected - 1 + shift)
    positions = np.concatenate([shared - 1, chosen - 1, rejected_predictors])
    targets = pair.tokens[np.concatenate([shared, chosen, rejected + shift])]

    # A target in the prefix may count for both completions, others count for one.
    in_chosen = np.concatenate(
        [shared >= pair.chosen_start, np.ones(len(chosen)), np.zeros(len(rejected))]
    )
    in_rejected = np.concatenate(
        [shared >= pair.rejected_start, np.zeros(len(chosen)), np.ones(len(rejected))]
    )
    numbers = np.full(len(positions), number, dtype=np.int64)
    return positions + offset, targets, numbers, in_chosen, in_rejected
