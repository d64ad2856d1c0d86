"""Samples answers whose draws belong to their prompts, so that no batch changes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cpo_ds.translate.decoding import Decoding


class SeededChoice(LogitsProcessor):
    """Draws each row's next token by random numbers of its own, and leaves only that token.

    transformers' sampling draws for a batch as a whole, so a sentence's answer would depend on the
    sentences beside it. A greedy search over these scores gives the samples.
    """

    def __init__(self, seeds: Sequence[int], steps: int) -> None:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rows = [torch.rand(steps, generator=g, dtype=torch.float64) for g in generators]
        self._draws = torch.stack(rows)  # [rows, steps], from 0 to 1
        self._prompt_length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of 0 for the tokens drawn and minus infinity for the others."""
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        draws = self._draws[:, input_ids.shape[1] - self._prompt_length, None].to(scores.device)
        # The token in whose share of the cumulated probabilities the random number falls.
        ends = scores.double().softmax(-1).cumsum(-1)
        tokens = (ends <= draws * ends[:, -1:]).sum(-1, keepdim=True)
        tokens = tokens.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def sampling_arguments(decoding: Decoding, seeds: Sequence[int]) -> dict[str, Any]:
    """Arguments for `generate` that sample; all of the decoding's settings must have values."""
    # In transformers' own order.
    processors: list[Any] = []
    if decoding.temperature not in (None, 1.0):
        processors.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k:
        processors.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p is not None and decoding.top_p < 1:
        processors.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p:
        processors.append(MinPLogitsWarper(decoding.min_p))
    processors.append(SeededChoice(seeds, decoding.max_new_tokens))
    return {"logits_processor": LogitsProcessorList(processors)}
