"""The settings of a base that make another model if they change."""

from __future__ import annotations

from typing import Any

import transformers

from cpo_ds.model.load import load_model_config

# Keys of a base's configuration that change neither its log-probs nor their gradients here: they
# steer generation or first weights, name things, or set a precision or dropout that others replace.
NEUTRAL_KEYS = frozenset(
    {
        "architectures", "attention_dropout", "bos_token_id", "chunk_size_feed_forward", "dtype",
        "embd_pdrop", "eos_token_id", "id2label", "initializer_range", "label2id",
        "output_attentions", "output_hidden_states", "problem_type", "resid_pdrop",
        "torch_dtype", "use_cache",
    }
)  # fmt: skip


def base_settings(name_or_path: str) -> dict[str, Any]:
    """The values of a base's configuration without `NEUTRAL_KEYS`.

    With them comes the version of transformers, which adds defaults of its own. Raises
    `UserError` if the configuration cannot be read.
    """
    values = load_model_config(name_or_path).to_dict()
    settings = {
        key: value
        for key, value in values.items()
        if not key.startswith("_") and "version" not in key and key not in NEUTRAL_KEYS
    }
    return settings | {"transformers": transformers.__version__}
