"""Model shapes by name, so that benchmarks and the planner need no model files."""

from __future__ import annotations

from typing import Any

import transformers

from cpo_ds.errors import UserError


def _llama(
    vocabulary: int, hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": _llama(512, 64, 176, 2, 4, 2, tied=False),
    "llama-5m": _llama(2048, 320, 880, 3, 5, 5, tied=False),
    "llama-25m": _llama(8192, 384, 1024, 10, 6, 6, tied=False),
    "smollm2-135m": _llama(49152, 576, 1536, 30, 9, 3, tied=True),
    "smollm2-360m": _llama(49152, 960, 2560, 32, 15, 5, tied=True),
    "tinyllama-1.1b": _llama(32000, 2048, 5632, 22, 32, 4, tied=False),
    "llama-2-7b": _llama(32000, 4096, 11008, 32, 32, 32, tied=False),
    "llama-2-13b": _llama(32000, 5120, 13824, 40, 40, 40, tied=False),
}


def shape_config(name: str) -> Any:
    """The transformers configuration of a shape. Raises `UserError` for an unknown name."""
    if name not in SHAPES:
        raise UserError(f"there is no shape {name}; known are {', '.join(SHAPES)}.")
    return transformers.LlamaConfig(**SHAPES[name])
