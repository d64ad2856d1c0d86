"""Rotary positions whose frequencies depend on a sequence's length: `longrope` and `dynamic`.

transformers chooses them by the longest position of a call, so a long sequence changes all others
that are packed with it. In a packed row each sequence gets the frequencies that it gets alone.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn


def longest_unchanged(model_config: Any) -> int:
    """The longest sequence with the same frequencies as all shorter ones: its number of tokens."""
    return min((limit for _, limit in changing_ropes(model_config)), default=sys.maxsize)


def rope_key(model_config: Any, length: int) -> tuple[int, ...]:
    """A value that is the same for two lengths if their sequences get the same frequencies."""
    return tuple(
        0 if length <= limit else length if kind == "dynamic" else 1
        for kind, limit in changing_ropes(model_config)
    )


def changing_ropes(model_config: Any) -> list[tuple[str, int]]:
    """Kind of each rope that depends on the length, and the length up to which it is as at first.

    There is one rope for all layers, or one for each type of layer.
    """
    text = model_config.get_text_config()
    settings = getattr(text, "rope_parameters", None) or {}
    by_layer = [values for values in settings.values() if isinstance(values, dict)]
    limits = []
    for rope in by_layer or [settings]:
        kind = rope.get("rope_type")
        if kind == "longrope":
            limits.append((kind, rope["original_max_position_embeddings"]))
        elif kind == "dynamic":
            limits.append((kind, text.max_position_embeddings))
    return limits


def rotate_each_sequence(decoder: Any) -> None:
    """Lets a decoder choose the frequencies for each sequence of a packed row.

    A sequence begins at position 0, so a pair with a shared prefix counts as one. The lengths of
    its two sequences must have the same `rope_key`.
    """
    rotary = decoder.rotary_emb
    rotary.forward = partial(_rotary_forward, rotary)


def _rotary_forward(
    rotary: Any, states: torch.Tensor, position_ids: torch.Tensor, *layer_type: str
) -> tuple[torch.Tensor, ...]:
    """Cosines and sines of the positions in one packed row, [1, T, D] each."""
    # Cut the row between sequences with different frequencies.
    positions = position_ids[0].cpu().numpy()
    starts = np.flatnonzero(positions == 0)
    lengths = np.maximum.reduceat(positions, starts) + 1
    keys = [rope_key(rotary.config, int(length)) for length in lengths]
    cuts = [int(starts[i]) for i in range(1, len(keys)) if keys[i] != keys[i - 1]]

    # Rotate each part as if it were the only one.
    parts = []
    for part in position_ids.tensor_split(cuts, dim=1):
        _forget_lengths(rotary)
        parts.append(type(rotary).forward(rotary, states, part, *layer_type))
    return tuple(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True))


def _forget_lengths(rotary: nn.Module) -> None:
    """Undoes what `dynamic` keeps of the longest sequence so far, and uses for later ones."""
    for name in [name for name in vars(rotary) if name.endswith("max_seq_len_cached")]:
        setattr(rotary, name, rotary.original_max_seq_len)
    for name, first in list(rotary.named_buffers(recurse=False)):
        if name.endswith("original_inv_freq"):
            setattr(rotary, name.replace("original_", ""), first.clone())
