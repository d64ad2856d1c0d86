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
    most = max(pair.num_comparisons for pair in selected)
    scored = [
        _scored(pair, offset, number, most)
        for number, (pair, offset) in enumerate(zip(selected, offsets[:-1], strict=True))
    ]
    positions, targets, numbers, in_chosen, in_rejected = (
        np.concatenate(column) for column in zip(*scored, strict=True)
    )

    # Join tokens, positions and scored tokens of all pairs.
    return PackedBatch(
        input_ids=_row([pair.tokens for pair in selected]),
        position_ids=_row([_position_ids(pair) for pair in selected]),
        segment_lengths=tuple(pair.segments for pair in selected),
        score_positions=torch.from_numpy(positions),
        score_targets=torch.from_numpy(targets.astype(np.int64)),
        score_pairs=torch.from_numpy(numbers),
        score_in_chosen=torch.from_numpy(in_chosen.astype(np.float32)),
        score_in_rejected=torch.from_numpy(in_rejected.astype(np.float32)),
        num_chosen_tokens=torch.tensor([float(p.num_scored[0]) for p in selected]),
        num_rejected_tokens=_filled([p.num_scored[1:] for p in selected], most, 1.0),
        comparison_shares=_filled(
            [(1 / p.num_comparisons,) * p.num_comparisons for p in selected], most, 0.0
        ),
        pair_indices=tuple(int(i) for i in indices),
        counted=counted,
        reference_logps=_of_completions([pair.reference_logps for pair in selected], most),
        scores=_of_completions([pair.scores for pair in selected], most),
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


def _of_completions(of_pairs: Sequence[Sequence[float] | None], most: int) -> torch.Tensor | None:
    """A number for each completion, [P, 1 + K] float32; None if there are none."""
    known = [numbers for numbers in of_pairs if numbers is not None]
    return _filled(known, 1 + most, 0.0) if known else None


def _filled(rows: Sequence[Sequence[float]], width: int, value: float) -> torch.Tensor:
    """Rows of numbers, each filled to a width with a value: [rows, width] float32."""
    filled = [[*row, *[value] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.float32)


def _row(parts: list[np.ndarray]) -> torch.Tensor:
    """Joins arrays into one row, [1, T] int64."""
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))[None]


def _position_ids(pair: TokenizedPair) -> np.ndarray:
    """Positions 0, 1, ... of the prefix, which each branch continues."""
    prefix, *branches = pair.segments
    of_branches = [np.arange(prefix, prefix + branch) for branch in branches]
    return np.concatenate([np.arange(prefix), *of_branches])


def _scored(pair: TokenizedPair, offset: int, number: int, most: int) -> tuple[np.ndarray, ...]:
    """Columns (position, target, pair number, in chosen, in rejected), one entry per target.

    `in rejected` has `most` columns itself, one for each rejected completion. The target at index i
    of a sequence is predicted at i - 1. For the first token of all branches that is the last token
    of the prefix, so one position may have several targets.
    """
    # Targets in the prefix. They may count for several completions.
    prefix, starts = pair.num_prefix, np.array(pair.starts)
    shared = np.arange(starts.min(), prefix)
    positions, targets = [shared - 1], [shared]
    counts = [shared[:, None] >= starts]

    # Targets in the branches, by their indices in prefix + branch. They count for one completion.
    shift = 0  # from such an index to the index in the row
    for completion, branch in enumerate(pair.branch_lengths):
        own = np.arange(max(pair.starts[completion], prefix), prefix + branch)
        positions.append(np.where(own == prefix, prefix - 1, own - 1 + shift))
        targets.append(own + shift)
        counts.append(np.tile(np.arange(len(starts)) == completion, (len(own), 1)))
        shift += branch

    places, in_completion = np.concatenate(positions), np.concatenate(counts)
    in_rejected = np.zeros((len(places), most))
    in_rejected[:, : pair.num_comparisons] = in_completion[:, 1:]
    return (
        places + offset,
        pair.tokens[np.concatenate(targets)],
        np.full(len(places), number, dtype=np.int64),
        in_completion[:, 0],
        in_rejected,
    )
