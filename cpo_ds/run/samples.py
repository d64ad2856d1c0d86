"""Translates a few held-out sources at each evaluation, for people to read.

Texts come from the tokens of the pairs, since tokenized pairs are kept without their rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cpo_ds.config import Config
from cpo_ds.engine.engine import Engine
from cpo_ds.model.positions import longest_unchanged
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.run.greedy import Beginning, continue_greedily
from cpo_ds.run.monitor import SilentMonitor
from cpo_ds.schema import PackedBatch, TokenizedPair
from cpo_ds.translate.cleaning import clean_as_alma


class Sampler:
    """Translates the same `train.sample_translations` held-out sources whenever it is asked to.

    It draws no random numbers from torch and takes no gradients, so training stays as it is.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        ranks: Ranks,
        monitor: SilentMonitor,
        pairs: Sequence[TokenizedPair],
        tokenizer: Any,
    ) -> None:
        self._engine, self._ranks, self._monitor = engine, ranks, monitor
        self._tokenizer, self._room = tokenizer, config.batch.tokens_per_rank
        self._pairs: list[TokenizedPair] = []
        self._has_said_cost = False
        count = config.train.sample_translations
        if count:
            numbers = spread([pair.direction for pair in pairs], count, config.train.seed)
            self._pairs = [pairs[number] for number in numbers]
            # Two more tokens of a row are the branches. Up to `longest_unchanged` a sequence has
            # the same positions in the row as alone.
            unchanged = longest_unchanged(engine.policy.causal_lm.config)
            most = min(config.data.max_tokens, self._room - 2, unchanged - 1)
            self._beginnings = [self._beginning(pair, most) for pair in self._pairs]

    def _beginning(self, pair: TokenizedPair, most: int) -> Beginning:
        """The prompt of a pair; its answer may have twice the chosen completion's tokens."""
        chosen, _ = completions(pair)
        stops = frozenset({chosen[-1], self._tokenizer.eos_token_id} - {None})
        limit = max(0, min(2 * len(chosen), most - pair.chosen_start))
        # The chosen branch follows the prefix, so that the prompt is where the row begins.
        return Beginning(tuple(pair.tokens[: pair.chosen_start].tolist()), stops, limit)

    def translate(self, step: int) -> None:
        """Writes a line for each source; all ranks call it."""
        if not self._pairs:
            return
        begin = time.monotonic()
        with self._engine.evaluating():
            answers = continue_greedily(self._beginnings, self._predict, self._room)
        if self._ranks.rank > 0:
            return
        samples = [
            self._sample(step, *one)
            for one in zip(self._pairs, self._beginnings, answers, strict=True)
        ]
        self._monitor.write_samples(samples)
        if not self._has_said_cost:
            self._has_said_cost = True
            self._monitor.say(
                f"translating {len(samples)} source(s) at each evaluation, into samples.jsonl, "
                f"took {time.monotonic() - begin:.1f} s"
            )

    def _predict(self, batch: PackedBatch) -> torch.Tensor:
        """Rank 0's predictions on all ranks: they must agree on how many passes follow."""
        tokens = self._engine.predict(batch.to(self._ranks.device))
        torch.distributed.broadcast(tokens, src=0)
        return tokens

    def _sample(
        self, step: int, pair: TokenizedPair, beginning: Beginning, answer: list[int]
    ) -> dict[str, Any]:
        chosen, rejected = completions(pair)
        return {
            "step": step,
            "language_pair": pair.direction,
            "prompt": self._text(beginning.prompt),
            "reference": self._text(chosen).strip(),
            "translation": clean_as_alma(self._text(answer))[0],
            "rejected": self._text(rejected).strip(),
        }

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def completions(pair: TokenizedPair) -> tuple[list[int], list[int]]:
    """The scored tokens of the chosen and of the rejected completion."""
    prefix, rest = pair.tokens[: pair.num_prefix], pair.tokens[pair.num_prefix :]
    chosen = np.concatenate([prefix, rest[: pair.num_chosen]])[pair.chosen_start :]
    rejected = np.concatenate([prefix, rest[pair.num_chosen :]])[pair.rejected_start :]
    return chosen.tolist(), rejected.tolist()


def spread(directions: Sequence[str], count: int, seed: int) -> list[int]:
    """The numbers of `count` pairs, drawn by turns from each direction; all if they are fewer."""
    order = np.random.default_rng(seed).permutation(len(directions)).tolist()
    turns: dict[str, int] = {}
    places = []
    for number in order:
        turn = turns[directions[number]] = turns.get(directions[number], -1) + 1
        places.append((turn, directions[number], number))
    return [number for _, _, number in sorted(places, key=lambda place: place[:2])[:count]]
