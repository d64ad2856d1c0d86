"""Rows with several rejected completions, of the lengths of real WMT22 candidates.

The lengths come from `wmt22_candidates.json`, made by `wmt22_lengths.py`: a translation by GPT-4,
and eight that are taken as worse: by other systems, the reference, and noised copies of GPT-4's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpo_ds.schema import PreferenceRow
from models.synthetic import DRAWS, SPECIAL_TOKENS, nearest_to_average, next_token, words

WMT22_CANDIDATES = Path(__file__).resolve().parent / "wmt22_candidates.json"
MOST_REJECTED = 8


@dataclass(frozen=True)
class ListLengths:
    """Tokens of a row; a completion's count includes the end-of-sequence token.

    A rejected completion is (its tokens, those that it and the chosen one begin with).
    """

    prompt: int
    chosen: int
    rejected: tuple[tuple[int, int], ...]

    def with_rejected(self, count: int) -> ListLengths:
        """The same row with its first rejected completions only."""
        return ListLengths(self.prompt, self.chosen, self.rejected[:count])

    def unrolled(self) -> list[ListLengths]:
        """A row for each comparison."""
        return [ListLengths(self.prompt, self.chosen, (one,)) for one in self.rejected]

    @property
    def unique(self) -> int:
        """Tokens of the row as one sequence, those that all completions begin with counted once."""
        common = min(shared for _, shared in self.rejected)
        branches = self.chosen + sum(length for length, _ in self.rejected)
        return self.prompt + branches - common * len(self.rejected)


def draw_lists(
    steps: int, rows_per_step: int, seed: int, *, context_tokens: int = 0
) -> list[ListLengths]:
    """Draws lengths of real rows, one step's after the other's.

    Each step is the one of a hundred draws whose numbers of unique tokens are nearest to the
    average, both as lists and as unrolled pairs. `context_tokens` are added to each prompt.
    """
    contents = json.loads(WMT22_CANDIDATES.read_text(encoding="utf-8"))["lengths"]
    known = [
        ListLengths(prompt + context_tokens, chosen, tuple(map(tuple, rest)))
        for prompt, chosen, rest in contents
    ]
    lists = np.array([one.unique for one in known])
    pairs = np.array([sum(pair.unique for pair in one.unrolled()) for one in known])
    draws = np.random.RandomState(seed).randint(0, len(known), (steps, DRAWS, rows_per_step))
    sizes = np.stack([lists[draws].sum(-1), pairs[draws].sum(-1)])
    return [known[index] for index in nearest_to_average(draws, sizes)]


def rows_of_lists(
    lengths: Sequence[ListLengths], vocabulary: int, seed: int
) -> list[PreferenceRow]:
    """Random texts that `synthetic.number_tokenizer` cuts into exactly these lengths."""
    rng = random.Random(seed)
    tokens = range(len(SPECIAL_TOKENS), vocabulary)
    rows = []
    for number, wanted in enumerate(lengths):
        chosen = rng.choices(tokens, k=wanted.chosen - 1)
        rejected = []
        for length, common in wanted.rejected:
            own = rng.choices(tokens, k=length - 1 - common)
            if own and common < len(chosen) and own[0] == chosen[common]:
                own[0] = next_token(own[0], tokens)
            rejected.append(words([*chosen[:common], *own]))
        prompt = words(rng.choices(tokens, k=wanted.prompt)).strip()
        rows.append(PreferenceRow(prompt, words(chosen), tuple(rejected), "", str(number)))
    return rows


def unrolled(rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """A row for each comparison: the same prompt and chosen text, one rejected text."""
    return [
        PreferenceRow(row.prompt, row.chosen, (text,), row.direction, f"{row.origin}.{number}")
        for row in rows
        for number, text in enumerate(row.rejected)
    ]


def shuffled_in_steps(pairs: Sequence[PreferenceRow], steps: int, seed: int) -> list[PreferenceRow]:
    """The pairs of each of the steps shuffled, so that neighbours are seldom of one source."""
    rng, of_step = random.Random(seed), len(pairs) // steps
    return [
        pair
        for begin in range(0, len(pairs), of_step)
        for pair in rng.sample(pairs[begin : begin + of_step], of_step)
    ]
