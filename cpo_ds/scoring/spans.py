"""Error spans from the probabilities of XCOMET's labels."""

from __future__ import annotations

from typing import Any

import torch

from cpo_ds.scoring.plan import ErrorSpan


def decode_spans(
    probabilities: torch.Tensor,
    input_ids: torch.Tensor,
    offsets: list[list[tuple[int, int]]],
    tokenizer: Any,
    labels: dict[int, str],
) -> list[list[ErrorSpan]]:
    """The error spans of each translation of a batch.

    The result equals that of `UnifiedMetric.decode` in COMET 2.2.7 without a threshold. That
    function takes several operations for each token, this one a few for the whole batch. A span
    begins at a token with an error label and keeps that label's severity. It goes on as long as
    tokens have an error label, and is left out if the translation ends in it.

    Args:
        probabilities: [items, tokens, labels], label 0 being no error.
        input_ids: [items, tokens or more].
        offsets: (start, end) in characters of each item's tokens, special ones included.
        tokenizer: decodes `input_ids`.
        labels: names of the labels, like `I-minor`.
    """
    best, label = (values.cpu() for values in probabilities.max(dim=2))
    input_ids = input_ids.cpu()
    spans: list[list[ErrorSpan]] = []
    for item, item_offsets in enumerate(offsets):
        length = min(len(item_offsets), label.shape[1])  # without padding
        item_labels = label[item, :length].tolist()
        spans.append(
            [
                {
                    "text": tokenizer.decode(input_ids[item, first:end]),
                    "confidence": best[item, first:end].mean().item(),
                    "severity": labels[item_labels[first]].split("-")[1],
                    "start": item_offsets[first][0],
                    "end": item_offsets[end - 1][1],
                }
                for first, end in closed_runs(item_labels)
            ]
        )
    return spans


def closed_runs(labels: list[int]) -> list[tuple[int, int]]:
    """(first, end) of each run of labels other than 0 that a 0 follows."""
    runs, first = [], None
    for position, label in enumerate(labels):
        if label and first is None:
            first = position
        elif not label and first is not None:
            runs.append((first, position))
            first = None
    return runs
