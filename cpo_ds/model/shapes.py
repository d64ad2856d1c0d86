"""Model shapes by name, so that benchmarks and the planner need no model files.

Importing this module is quick: transformers is imported when a shape's configuration is made.
"""

from __future__ import annotations

from typing import Any

from cpo_ds.errors import UserError, did_you_mean


def _shape(
    model_type: str,
    vocabulary: int,
    hidden: int,
    mlp: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    tied: bool = False,
    positions: int = 4096,
    **others: Any,
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": positions,
        **others,
    }


# The sizes are those of the configurations that the models' makers published.
SHAPES: dict[str, dict[str, Any]] = {
    # Small ones, for tests and benchmarks
    "tiny": _shape("llama", 512, 64, 176, 2, 4, 2),
    "llama-5m": _shape("llama", 2048, 320, 880, 3, 5, 5),
    "llama-25m": _shape("llama", 8192, 384, 1024, 10, 6, 6),
    "smollm2-135m": _shape("llama", 49152, 576, 1536, 30, 9, 3, tied=True),
    "smollm2-360m": _shape("llama", 49152, 960, 2560, 32, 15, 5, tied=True),
    "smollm2-1.7b": _shape("llama", 49152, 2048, 8192, 24, 32, 32, tied=True),
    "tinyllama-1.1b": _shape("llama", 32000, 2048, 5632, 22, 32, 4),
    # Llama 2 (ALMA's too), 3, 3.1 and 3.2
    "llama-2-7b": _shape("llama", 32000, 4096, 11008, 32, 32, 32),
    "llama-2-13b": _shape("llama", 32000, 5120, 13824, 40, 40, 40),
    "llama-2-70b": _shape("llama", 32000, 8192, 28672, 80, 64, 8),
    "llama-3-8b": _shape("llama", 128256, 4096, 14336, 32, 32, 8, positions=8192),
    "llama-3-70b": _shape("llama", 128256, 8192, 28672, 80, 64, 8, positions=8192),
    "llama-3.1-8b": _shape("llama", 128256, 4096, 14336, 32, 32, 8, positions=131072),
    "llama-3.1-70b": _shape("llama", 128256, 8192, 28672, 80, 64, 8, positions=131072),
    "llama-3.2-1b": _shape(
        "llama", 128256, 2048, 8192, 16, 32, 8, tied=True, positions=131072, head_dim=64
    ),
    "llama-3.2-3b": _shape(
        "llama", 128256, 3072, 8192, 28, 24, 8, tied=True, positions=131072, head_dim=128
    ),
    "llama-3.3-70b": _shape("llama", 128256, 8192, 28672, 80, 64, 8, positions=131072),
    # EuroLLM
    "eurollm-1.7b": _shape("llama", 128000, 2048, 5632, 24, 16, 8),
    "eurollm-9b": _shape("llama", 128000, 4096, 12288, 42, 32, 8),
    # Qwen
    "qwen2.5-0.5b": _shape("qwen2", 151936, 896, 4864, 24, 14, 2, tied=True, positions=32768),
    "qwen2.5-1.5b": _shape("qwen2", 151936, 1536, 8960, 28, 12, 2, tied=True, positions=32768),
    "qwen2.5-3b": _shape("qwen2", 151936, 2048, 11008, 36, 16, 2, tied=True, positions=32768),
    "qwen2.5-7b": _shape("qwen2", 152064, 3584, 18944, 28, 28, 4, positions=131072),
    "qwen2.5-14b": _shape("qwen2", 152064, 5120, 13824, 48, 40, 8, positions=131072),
    "qwen2.5-32b": _shape("qwen2", 152064, 5120, 27648, 64, 40, 8, positions=131072),
    "qwen2.5-72b": _shape("qwen2", 152064, 8192, 29568, 80, 64, 8, positions=131072),
    **{
        f"qwen3-{size}": _shape(
            "qwen3", 151936, *sizes, tied=size in ("0.6b", "1.7b", "4b"), positions=40960,
            head_dim=128,
        )
        for size, sizes in {
            "0.6b": (1024, 3072, 28, 16, 8),
            "1.7b": (2048, 6144, 28, 16, 8),
            "4b": (2560, 9728, 36, 32, 8),
            "8b": (4096, 12288, 36, 32, 8),
            "14b": (5120, 17408, 40, 40, 8),
            "32b": (5120, 25600, 64, 64, 8),
        }.items()
    },
    # Gemma; of Gemma 3 the text part
    "gemma-2-2b": _shape("gemma2", 256000, 2304, 9216, 26, 8, 4, tied=True, head_dim=256),
    "gemma-2-9b": _shape("gemma2", 256000, 3584, 14336, 42, 16, 8, tied=True, head_dim=256),
    "gemma-2-27b": _shape("gemma2", 256000, 4608, 36864, 46, 32, 16, tied=True, head_dim=128),
    "gemma-3-1b": _shape(
        "gemma3_text", 262144, 1152, 6912, 26, 4, 1, tied=True, positions=32768, head_dim=256
    ),
    "gemma-3-4b": _shape(
        "gemma3_text", 262208, 2560, 10240, 34, 8, 4, tied=True, positions=131072, head_dim=256
    ),
    "gemma-3-12b": _shape(
        "gemma3_text", 262208, 3840, 15360, 48, 16, 8, tied=True, positions=131072, head_dim=256
    ),
    "gemma-3-27b": _shape(
        "gemma3_text", 262208, 5376, 21504, 62, 32, 16, tied=True, positions=131072, head_dim=128
    ),
    # Mistral
    "mistral-7b": _shape("mistral", 32768, 4096, 14336, 32, 32, 8, positions=32768),
    "mistral-nemo-12b": _shape(
        "mistral", 131072, 5120, 14336, 40, 32, 8, positions=131072, head_dim=128
    ),
    "mistral-small-24b": _shape(
        "mistral", 131072, 5120, 32768, 40, 32, 8, positions=32768, head_dim=128
    ),
    # Phi
    "phi-3-mini": _shape("phi3", 32064, 3072, 8192, 32, 32, 32),
    "phi-4-mini": _shape(
        "phi3", 200064, 3072, 8192, 32, 24, 8, tied=True, positions=131072,
        partial_rotary_factor=0.75,
    ),
    "phi-4": _shape("phi3", 100352, 5120, 17920, 40, 40, 10, positions=16384),
    # OLMo 2
    "olmo-2-1b": _shape("olmo2", 100352, 2048, 8192, 16, 16, 16),
    "olmo-2-7b": _shape("olmo2", 100352, 4096, 11008, 32, 32, 32),
    "olmo-2-13b": _shape("olmo2", 100352, 5120, 13824, 40, 40, 40),
    "olmo-2-32b": _shape("olmo2", 100352, 5120, 27648, 64, 40, 8),
    # Aya Expanse
    "aya-expanse-8b": _shape("cohere", 256000, 4096, 14336, 32, 32, 8, tied=True, positions=8192),
    "aya-expanse-32b": _shape("cohere", 256000, 8192, 24576, 40, 64, 8, tied=True, positions=8192),
}  # fmt: skip


def check_shape(name: str) -> None:
    """Raises `UserError` for a name that is none of `SHAPES`."""
    if name not in SHAPES:
        raise UserError(
            f"there is no shape {name}{did_you_mean(name, list(SHAPES))}; known are "
            f"{', '.join(SHAPES)}."
        )


def shape_config(name: str) -> Any:
    """The transformers configuration of a shape. Raises `UserError` for an unknown name."""
    import transformers

    check_shape(name)
    values = dict(SHAPES[name])
    # transformers' defaults for special tokens may lie outside a small vocabulary.
    return transformers.AutoConfig.for_model(values.pop("model_type"), **values, pad_token_id=None)
