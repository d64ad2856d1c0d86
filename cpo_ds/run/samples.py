"""Translates a few held-out sources at each evaluation, for people to read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from cpo_ds.config import Config
from cpo_ds.data.reread import PairTexts, read_again
from cpo_ds.engine.engine import Engine
from cpo_ds.errors import UserError
from cpo_ds.model.positions import longest_unchanged
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.ranks.stopping import StopRequest
from cpo_ds.run.greedy import Answer, Beginning, Rules, continue_greedily, rules_of_model
from cpo_ds.run.monitor import SilentMonitor
from cpo_ds.run.sample_metrics import cautions, score_samples, scores_in_words
from cpo_ds.schema import PackedBatch, TokenizedPair
from cpo_ds.translate.cleaning import clean, clean_as_alma
from cpo_ds.translate.decoding import own_settings


class Sampler:
    """Translates the same held-out sources whenever it is asked to; all ranks share the work.

    It draws no random numbers from torch and takes no gradients, so training stays as it is.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        ranks: Ranks,
        monitor: SilentMonitor,
        stop: StopRequest,
        texts: Sequence[PairTexts],
        tokenizer: Any,
    ) -> None:
        """Raises `UserError` if the model's own settings ask for another way of decoding."""
        self._engine, self._ranks, self._monitor, self._stop = engine, ranks, monitor, stop
        self._texts, self._tokenizer, self._train = texts, tokenizer, config.train
        self._room, self._selected_by = config.batch.tokens_per_rank, config.data.selected_by
        model = engine.policy.causal_lm
        # An answer ends, and settings of the model's own files count, as in `cpo-ds translate`.
        settings = model.generation_config
        ends = settings.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._stops = {ends} if isinstance(ends, int) else set(ends or [])
        name = config.model.name_or_path
        try:
            own = own_settings(settings.to_diff_dict(), name, samples=False)
        except UserError as error:
            raise UserError(f"train.sample_translations: {error}") from None
        self._has_rules = bool(own.applied)
        # Two more tokens of a row are the branches. Up to `longest_unchanged` a sequence has the
        # same positions in the row as alone.
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        most = min(self._room - 2, longest_unchanged(model.config) - 1, context or self._room)
        limit = config.train.sample_max_tokens
        self._beginnings = [
            Beginning(text.tokens, max(0, min(limit, most - len(text.tokens)))) for text in texts
        ]
        for line in own.lines[: self._has_rules]:  # the first is on settings that count
            monitor.say(line)

    def translate(self, step: int) -> dict[str, Any] | None:
        """Writes a line for each source; returns values for the line of the evaluation.

        None, and nothing is written, if the run was asked to stop meanwhile. All ranks call it.
        """
        begin = time.monotonic()
        answers = self._answers()
        if answers is None:
            return None
        if self._ranks.rank > 0:
            return {}
        translations = [
            cleaned(self._text(answer), text)
            for text, answer in zip(self._texts, answers, strict=True)
        ]
        self._monitor.write_samples([
            _line(step, *one) for one in zip(self._texts, answers, translations, strict=True)
        ])  # fmt: skip
        values = score_samples(
            self._train.sample_metrics, self._texts, translations, self._selected_by
        )
        cut = sum(not answer.is_whole for answer in answers)
        self._monitor.say(
            f"translations at step {step}: {len(answers)} in {time.monotonic() - begin:.1f} s, "
            f"{sum(len(answer.tokens) for answer in answers)} tokens, {cut} not ended "
            f"within {self._train.sample_max_tokens}{scores_in_words(values)}"
        )
        return values

    def _answers(self) -> list[Answer] | None:
        """The answers to all prompts, on all ranks; None if any was asked to stop."""
        rank, ranks = self._ranks.rank, self._ranks.world_size
        try:
            with self._engine.evaluating():
                own = continue_greedily(
                    self._beginnings[rank::ranks],
                    self._predict,
                    self._stops,
                    tokens_at_once=self._room,
                    goes_on=self._goes_on,
                    stand_in=min(self._beginnings, key=lambda one: len(one.prompt)).prompt,
                    rules_of=self._rules_of,
                )
        except _StopAsked:
            return None
        shares = self._ranks.gather(own)
        return [shares[index % ranks][index // ranks] for index in range(len(self._beginnings))]

    def _predict(self, batch: PackedBatch) -> torch.Tensor:
        return self._engine.predict(batch.to(self._ranks.device))

    def _goes_on(self, has_more: bool) -> bool:
        """Whether any rank has more to translate. Raises `_StopAsked` if any was asked to stop."""
        goes_on, stops = self._ranks.any(has_more, self._stop.reason is not None)
        if stops:
            raise _StopAsked
        return goes_on

    def _rules_of(self, beginning: Beginning) -> Rules | None:
        if not self._has_rules:
            return None
        model = self._engine.policy.causal_lm
        return rules_of_model(model, self._stops, beginning, self._ranks.device)

    def _text(self, answer: Answer) -> str:
        text: str = self._tokenizer.decode(
            list(answer.tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class _StopAsked(Exception):
    """Raised between two passes if a rank was asked to stop."""


def read_samples(
    config: Config, ranks: Ranks, pairs: Sequence[TokenizedPair], tokenizer: Any
) -> list[PairTexts]:
    """The texts of `train.sample_translations` held-out pairs, on all ranks; prints what they are.

    Raises `UserError` if their rows cannot be read.
    """
    train, data = config.train, config.data
    numbers = spread([pair.direction for pair in pairs], train.sample_translations, train.seed)
    wanted = [(pairs[number].origin, pairs[number].direction) for number in numbers]
    read = partial(read_again, data, tokenizer, data.eval_path, wanted)
    texts: list[PairTexts] = ranks.on_first(read) if wanted else []
    if texts:
        fewer = " (all that there are)" * (len(texts) < train.sample_translations)
        ranks.say(
            f"translating {len(texts)} held-out source(s){fewer} at each evaluation, at most "
            f"{train.sample_max_tokens} tokens each, into samples.jsonl"
        )
    if texts and train.sample_metrics:
        for caution in cautions(texts, data.selected_by):
            ranks.say(f"  {caution}")
    return texts


def cleaned(answer: str, text: PairTexts) -> str:
    """The translation in an answer, by the rule of `cpo-ds translate` for such a prompt."""
    if text.is_chat:
        return clean(answer, text.target, text.request)[0]
    return clean_as_alma(answer)[0]


def _line(step: int, text: PairTexts, answer: Answer, translation: str) -> dict[str, Any]:
    """A line of samples.jsonl."""
    line = {
        "step": step,
        "language_pair": text.direction or "unknown",
        "prompt": text.prompt,
        "translation": translation,
        "is_whole": answer.is_whole,
        "reference": text.reference,
        "chosen": text.chosen,
        "rejected": text.rejected[0] if len(text.rejected) == 1 else list(text.rejected),
    }
    return {name: value for name, value in line.items() if value is not None}


def spread(directions: Sequence[str], count: int, seed: int) -> list[int]:
    """The numbers of `count` pairs, drawn by turns from each direction; all if they are fewer."""
    order = np.random.default_rng(seed).permutation(len(directions)).tolist()
    turns: dict[str, int] = {}
    drawn = []
    for number in order:
        turn = turns[directions[number]] = turns.get(directions[number], -1) + 1
        drawn.append((turn, directions[number], number))
    return [number for _, _, number in sorted(drawn, key=lambda one: one[:2])[:count]]
