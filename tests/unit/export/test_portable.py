"""Settings in the form of transformers 4.57, written by hand; tests/peers load them by it."""

from __future__ import annotations

from typing import Any

import pytest

from cpo_ds.export.portable import portable_config, portable_tokenizer

LONG = {"short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("model_type", "rope", "old"),
    [
        ("llama", {"rope_type": "default"}, {"rope_scaling": None}),
        (
            "llama",
            {"rope_type": "linear", "type": "linear", "factor": 4.0},
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        (
            "olmo2",
            {"rope_type": "dynamic", "factor": 4.0},
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
        ),
        (
            "phi3",
            LONG
            | {
                "rope_type": "longrope",
                "original_max_position_embeddings": 64,
                "partial_rotary_factor": 0.5,
            },
            {
                "rope_scaling": LONG | {"type": "longrope"},
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
)
def test_positions_in_the_old_form(
    model_type: str, rope: dict[str, Any], old: dict[str, Any]
) -> None:
    settings = {"model_type": model_type, "rope_parameters": rope | {"rope_theta": 77.0}}
    assert portable_config(settings) == settings | old | {"rope_theta": 77.0}


def test_layers_with_positions_of_their_own() -> None:
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 77.0}
    local = {"rope_type": "default", "rope_theta": 33.0}
    rope = {"full_attention": full, "sliding_attention": local}
    written = portable_config({"model_type": "gemma3_text", "rope_parameters": rope})
    assert written["rope_parameters"] == rope
    assert written["rope_theta"] == 77.0 and written["rope_local_base_freq"] == 33.0
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_precision_under_both_names() -> None:
    written = portable_config({"model_type": "llama", "dtype": "bfloat16"})
    assert written["torch_dtype"] == written["dtype"] == "bfloat16"


def test_special_tokens_under_the_old_name() -> None:
    settings = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": ["<a>"]}
    assert portable_tokenizer(settings) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
    }
    named = {"extra_special_tokens": {"image_token": "<i>"}}  # a form that 4.57 knows
    assert portable_tokenizer(named)["extra_special_tokens"] == {"image_token": "<i>"}
