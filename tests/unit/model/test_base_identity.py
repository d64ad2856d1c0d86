"""Keys of a base's config.json that a run may change, and those that make another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import save_tiny_model

from cpo_ds.model.base_identity import NEUTRAL_KEYS, base_settings

OTHER_VALUES: dict[str, Any] = {
    "architectures": ["Another"],
    "attention_dropout": 0.5,
    "bos_token_id": 7,
    "chunk_size_feed_forward": 0,
    "dtype": "bfloat16",
    "embd_pdrop": 0.5,
    "eos_token_id": [2, 3],
    "id2label": {"0": "a", "1": "b"},
    "initializer_range": 0.5,
    "label2id": {"a": 0, "b": 1},
    "output_attentions": True,
    "output_hidden_states": True,
    "problem_type": "regression",
    "resid_pdrop": 0.5,
    "torch_dtype": "bfloat16",
    "use_cache": False,
}
NAMES = {"_name_or_path": "elsewhere", "transformers_version": "4.57.0"}


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def log_probs(folder: Path) -> torch.Tensor:
    """Log-probs by transformers alone, with the model's own dropout off."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.arange(3, 40)[None]).logits
    return logits.log_softmax(-1)


def test_every_neutral_key_is_tried() -> None:
    assert OTHER_VALUES.keys() == NEUTRAL_KEYS


@pytest.mark.parametrize("key", [*OTHER_VALUES, *NAMES])
def test_a_neutral_key_changes_nothing(tmp_path: Path, key: str) -> None:
    save_tiny_model(tmp_path, "phi3" if key.endswith("_pdrop") else "llama")
    before, expected = base_settings(str(tmp_path)), log_probs(tmp_path)
    change(tmp_path, **{key: (OTHER_VALUES | NAMES)[key]})
    assert base_settings(str(tmp_path)) == before
    assert torch.equal(log_probs(tmp_path), expected)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "rms_norm_eps", 0.1),
        ("llama", "rope_parameters", {"rope_theta": 7.0, "rope_type": "default"}),
        ("llama", "hidden_act", "gelu"),
        ("gemma2", "final_logit_softcapping", 1.0),
        ("gemma2", "query_pre_attn_scalar", 3),
        ("cohere", "logit_scale", 3.0),
        ("granite", "residual_multiplier", 3.0),
    ],
)
def test_negative_control_a_key_of_the_architecture_does(
    tmp_path: Path, family: str, key: str, value: Any
) -> None:
    save_tiny_model(tmp_path, family)
    before, expected = base_settings(str(tmp_path)), log_probs(tmp_path)
    change(tmp_path, **{key: value})
    after = base_settings(str(tmp_path))
    assert [name for name in after if after[name] != before[name]] == [key]
    assert not torch.equal(log_probs(tmp_path), expected)
