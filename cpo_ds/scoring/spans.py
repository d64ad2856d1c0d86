"""XCOMET's error spans from the probabilities of its labels."""

from __future__ import annotations

from typing import Any

import torch


def decode_spans(
    probabilities: torch.Tensor,
    input_ids: torch.Tensor,
    offsets: list[list[tuple[int, int]]],
    tokenizer: Any,
    labels: dict[int, str],
) -> list[list[dict[str, Any]]]:
    """Spans of each translation: text, severity, confidence, start and end in characters.

    What `UnifiedMetric.decode` of COMET 2.2.7 gives without a threshold, but with a few operations
    for a batch instead of several for each token. As there, a span begins at a token with an error
    label, keeps that label's severity, goes on as long as tokens have one, and does not count
    where the translation ends in it.

    Args:
        probabilities: [items, tokens, labels], label 0 being no error.
        input_ids: [items, tokens or more].
        offsets: of each item's tokens, special ones included.
    """
    best, label = (values.cpu() for values in probabilities.max(dim=2))
    input_ids = input_ids.cpu()
    found = []
    for item, item_offsets in enumerate(offsets):
        length = min(len(item_offsets), label.shape[1])
        item_labels = label[item, :length].tolist()
        found.append(
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
    return found


def closed_runs(labels: list[int]) -> list[tuple[int, int]]:
    """(first, end) of each run of labels that are not 0 and that a 0 ends."""
    runs, first = [], None
    for place, label in enumerate(labels):
        if label and first is None:
            first = place
        elif not label and first is not None:
            runs.append((first, place))
            first = None
    return runs
