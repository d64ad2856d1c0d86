"""Continues prompts by the likeliest tokens, with the packed forward pass of training.

There is no cache of keys and values: each token costs a pass over all sequences so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cpo_ds.data.pack import pack
from cpo_ds.schema import PackedBatch, TokenizedPair

Predict = Callable[[PackedBatch], torch.Tensor]  # the likeliest token at each scored position


@dataclass(frozen=True)
class Beginning:
    """A prompt's tokens, the tokens that end its answer, and the most tokens of the answer."""

    prompt: tuple[int, ...]
    stops: frozenset[int]
    limit: int

    @property
    def longest(self) -> int:
        """The most tokens that it takes in a packed row."""
        return len(self.prompt) + self.limit + 1


def continue_greedily(
    beginnings: Sequence[Beginning], predict: Predict, tokens_at_once: int
) -> list[list[int]]:
    """The likeliest continuation of each prompt, without the token that ends it.

    Prompts go through the model together as long as they take at most `tokens_at_once`. The number
    of passes depends on the predicted tokens alone.
    """
    answers: list[list[int]] = []
    for group in _groups(beginnings, tokens_at_once):
        answers += _continue_together(group, predict)
    return answers


def _groups(beginnings: Sequence[Beginning], tokens_at_once: int) -> list[list[Beginning]]:
    """Neighbours whose whole sequences fit into one row, or a single one that does not fit."""
    groups: list[list[Beginning]] = []
    for beginning in beginnings:
        taken = sum(other.longest for other in groups[-1]) if groups else tokens_at_once
        if taken + beginning.longest > tokens_at_once:
            groups.append([])
        groups[-1].append(beginning)
    return groups


def _continue_together(group: Sequence[Beginning], predict: Predict) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in group]
    open_ones = [index for index, beginning in enumerate(group) if beginning.limit > 0]
    while open_ones:
        pairs = [_as_pair([*group[index].prompt, *answers[index]]) for index in open_ones]
        batch = pack(pairs, tuple(range(len(pairs))))
        # A pair has two scored positions, both at the end of its sequence.
        tokens = predict(batch).tolist()[::2]
        still_open = []
        for index, token in zip(open_ones, tokens, strict=True):
            if token in group[index].stops:
                continue
            answers[index].append(token)
            if len(answers[index]) < group[index].limit:
                still_open.append(index)
        open_ones = still_open
    return answers


def _as_pair(tokens: list[int]) -> TokenizedPair:
    """A sequence as a pair's prefix, whose last token predicts the first of each branch.

    The branches have a token each, since no backend takes empty ones; nothing depends on it.
    """
    length = len(tokens)
    return TokenizedPair(
        tokens=np.array([*tokens, tokens[-1], tokens[-1]], dtype=np.int32),
        num_prefix=length,
        num_chosen=1,
        chosen_start=length,
        rejected_start=length,
        direction="",
        origin="",
    )
