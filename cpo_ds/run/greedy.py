"""Continues prompts by the likeliest tokens, with the packed forward pass of training.

There is no cache of keys and values: each token costs a pass over all sequences so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from cpo_ds.data.pack import pack
from cpo_ds.schema import PackedBatch, TokenizedPair

Predict = Callable[[PackedBatch], torch.Tensor]  # logits at each scored position: [S, V]
# Changes the logits after some tokens: [1, tokens] and [1, V] -> [1, V].
Rules = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_MOST_AT_ONCE = 64  # sequences in a row, since each has logits for the whole vocabulary


@dataclass(frozen=True)
class Beginning:
    """A prompt's tokens, and the most tokens of its answer."""

    prompt: tuple[int, ...]
    limit: int

    @property
    def longest(self) -> int:
        """The most tokens that it takes in a packed row."""
        return len(self.prompt) + self.limit + 1


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer. `is_whole`: the model ended it, not the limit of tokens."""

    tokens: tuple[int, ...]  # without the one that ended it
    is_whole: bool


@dataclass
class _Sequence:
    """A prompt with its answer so far."""

    beginning: Beginning
    rules: Rules | None
    answer: list[int] = field(default_factory=list)
    is_whole: bool = False

    @property
    def tokens(self) -> list[int]:
        return [*self.beginning.prompt, *self.answer]

    @property
    def is_open(self) -> bool:
        return not self.is_whole and len(self.answer) < self.beginning.limit


def continue_greedily(
    beginnings: Sequence[Beginning],
    predict: Predict,
    stops: Collection[int],
    *,
    tokens_at_once: int,
    goes_on: Callable[[bool], bool] = bool,
    stand_in: Sequence[int] = (0,),
    rules_of: Callable[[Beginning], Rules | None] = lambda _: None,
) -> list[Answer]:
    """The likeliest continuation of each prompt, up to a token of `stops`.

    As many prompts go through the model together as take at most `tokens_at_once`; when one is
    done, the next takes its place. `goes_on` is asked before each pass, with whether this rank has
    sequences left. If it is true without any, the pass is over the tokens of `stand_in`: under
    ZeRO-3 all ranks make equally many passes.
    """
    sequences = [_Sequence(beginning, rules_of(beginning)) for beginning in beginnings]
    waiting = deque(sequence for sequence in sequences if sequence.is_open)
    together: list[_Sequence] = []
    while goes_on(bool(waiting or together)):
        while waiting and _fits(waiting[0], together, tokens_at_once):
            together.append(waiting.popleft())
        rows = [sequence.tokens for sequence in together] or [list(stand_in)]
        for sequence, token in zip(together, _next_tokens(rows, together, predict), strict=False):
            sequence.is_whole = token in stops
            if not sequence.is_whole:
                sequence.answer.append(token)
        together = [sequence for sequence in together if sequence.is_open]
    return [Answer(tuple(sequence.answer), sequence.is_whole) for sequence in sequences]


def rules_of_model(model: Any, stops: Collection[int], beginning: Beginning, device: Any) -> Rules:
    """The rules of a model's generation_config.json, such as a penalty of repetitions.

    They are those that transformers' `generate` applies in a greedy search.
    """
    # transformers has no public way to its processors of logits without its own loop around them.
    ids = torch.tensor([beginning.prompt], device=device)
    settings, _ = model._prepare_generation_config(
        None,
        do_sample=False,
        num_beams=1,
        max_new_tokens=beginning.limit,
        eos_token_id=[*stops] or None,
    )
    model._prepare_special_tokens(settings, True, device=device, batch_size=1)
    settings = model._prepare_generated_length(settings, True, True, "input_ids", ids.shape[1], ids)
    rules: Rules = model._get_logits_processor(
        settings, ids.shape[1], encoder_input_ids=ids, device=device
    )
    return partial(rules)


def _fits(sequence: _Sequence, others: Sequence[_Sequence], tokens_at_once: int) -> bool:
    """Whether a sequence has room beside others to its end. Alone it always has."""
    taken = sum(other.beginning.longest for other in others)
    is_short = taken + sequence.beginning.longest <= tokens_at_once
    return not others or (is_short and len(others) < _MOST_AT_ONCE)


def _next_tokens(
    rows: Sequence[list[int]], sequences: Sequence[_Sequence], predict: Predict
) -> list[int]:
    """The likeliest token after each of `rows`, by the rules of its sequence, if it has any."""
    batch = pack([_as_pair(tokens) for tokens in rows], tuple(range(len(rows))))
    # Both branches of a pair are predicted at the same position, the end of its prefix.
    logits = predict(replace(batch, score_positions=batch.score_positions[::2]))
    for index, sequence in enumerate(sequences):
        if sequence.rules is not None:
            ids = torch.tensor([rows[index]], device=logits.device)
            logits[index] = sequence.rules(ids, logits[index : index + 1])[0]
    tokens: list[int] = logits.argmax(-1).tolist()
    return tokens


def _as_pair(tokens: list[int]) -> TokenizedPair:
    """A sequence as a pair's prefix, whose last token predicts the first of each branch.

    The branches have a token each, since no backend takes empty ones; nothing depends on it.
    """
    length = len(tokens)
    return TokenizedPair(
        tokens=np.array([*tokens, tokens[-1], tokens[-1]], dtype=np.int32),
        num_prefix=length,
        branch_lengths=(1, 1),
        starts=(length, length),
        direction="",
        origin="",
    )
