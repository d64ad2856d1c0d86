"""Tiny models with every kind of rotary positions, and pairs on both sides of their limit."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from helpers import all_sequences

from cpo_ds.schema import TokenizedPair

LIMIT = 40  # tokens, up to which `longrope` and `dynamic` keep their first frequencies
_THETA = {"rope_theta": 10_000.0}
_LONGROPE = {
    "rope_type": "longrope", "original_max_position_embeddings": LIMIT, "factor": 4.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 3.0, 6.0, 12.0],
}  # fmt: skip
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": LIMIT,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LIMIT}


def _rope(settings: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    return {"rope_parameters": settings | _THETA, **overrides}


def _by_layer(sliding: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_attention": sliding | _THETA, "full_attention": full | _THETA}


# Name -> family, and settings of the tiny model.
UNCHANGING: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {}),
    "default, beyond its limit": ("llama", {"max_position_embeddings": LIMIT}),
    "linear": ("llama", _rope({"rope_type": "linear", "factor": 3.0})),
    "llama3": ("llama", _rope(_LLAMA3)),
    "yarn": ("qwen2", _rope(_YARN)),
}
CHANGING: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("llama", _rope(_LONGROPE)),
    "longrope, phi3": (
        "phi3",
        {"rope_scaling": _LONGROPE, "original_max_position_embeddings": LIMIT},
    ),
    "dynamic": ("llama", _rope(_DYNAMIC, max_position_embeddings=LIMIT)),
    "dynamic, qwen3": ("qwen3", _rope(_DYNAMIC, max_position_embeddings=LIMIT)),
    "by type of layer": (
        "gemma3_text",
        {"rope_parameters": _by_layer(_LONGROPE, _DYNAMIC), "max_position_embeddings": LIMIT + 5},
    ),
}


def rows_around_the_limit(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose sequences have about 20 to 70 tokens of the tiny tokenizer."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return "".join(rng.choice("bcfgjkmpvw ") for _ in range(rng.randint(low, high)))

    rows = []
    for number in range(count):
        prompt, longest = text(10, 25), (10, 40)[number % 2]
        pair = {"chosen": text(8, longest), "rejected": text(8, longest)}
        rows.append({"prompt": prompt} | pair)
    return rows


def logps_alone(model: Any, pairs: list[TokenizedPair]) -> torch.Tensor:
    """Log-probs of chosen and rejected, [P, 1 + K], by plain transformers; unused places are 0.

    Each sequence is the first that a copy of the model sees: `dynamic` remembers the longest.
    """

    def logp(tokens: list[int], start: int) -> torch.Tensor:
        ids = torch.tensor([tokens])
        logits = copy.deepcopy(model)(input_ids=ids, use_cache=False).logits
        logps = logits[0, :-1].log_softmax(-1)
        return logps.gather(-1, ids[0, 1:, None])[start - 1 :].sum()

    with torch.no_grad():
        of_pairs = [torch.stack([*map(logp, all_sequences(pair), pair.starts)]) for pair in pairs]
    return torch.nn.utils.rnn.pad_sequence(of_pairs, batch_first=True)
