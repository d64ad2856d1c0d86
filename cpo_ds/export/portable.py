"""Settings of models and tokenizers in a form that transformers 4.57 and 5 read alike.

transformers 5 keeps rotary positions under other names than 4.57, which would take its defaults
without a word, and names tokenizer classes that 4.57 does not have.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]  # the content of a JSON file

_BESIDE_SCALING = ("rope_theta", "partial_rotary_factor")  # 4.57 reads these beside rope_scaling


def write_model_settings(folder: Path, model: Any, dtype: str) -> None:
    """Writes config.json and generation_config.json of a model whose weights are in `dtype`."""
    settings = copy.deepcopy(model.config)
    settings.dtype = dtype
    settings.architectures = [type(model).__name__]
    for name in ("auto_map", "transformers_weights"):  # they name files of the base's folder
        vars(settings).pop(name, None)
    settings.save_pretrained(folder)
    _rewrite(folder / "config.json", portable_config)
    # Not `save_pretrained`, which refuses some generation settings that base models come with.
    model.generation_config.to_json_file(folder / "generation_config.json", use_diff=True)


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Writes a tokenizer, the defaults of its class included.

    One that is not in a tokenizer.json is written as its own class does.
    """
    tokenizer.save_pretrained(folder)
    if (folder / "tokenizer.json").exists():
        names, side = tokenizer.model_input_names, tokenizer.padding_side
        of_class = {"model_input_names": names, "padding_side": side}
        _rewrite(folder / "tokenizer_config.json", lambda own: portable_tokenizer(of_class | own))


def portable_config(settings: Settings) -> Settings:
    """Returns a model's settings with rotary positions and precision in the old form too."""
    settings = dict(settings)
    if "dtype" in settings:
        settings["torch_dtype"] = settings["dtype"]
    rope = settings.get("rope_parameters")
    if not rope:
        return settings
    # Gemma 3 has other positions in layers with a sliding window, in 4.57 always without scaling.
    if "sliding_attention" in rope:
        settings["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    rope = rope.get("full_attention", rope)
    settings |= {name: rope[name] for name in _BESIDE_SCALING if name in rope}
    settings["rope_scaling"] = _old_scaling(rope, settings["model_type"])
    if rope["rope_type"] == "longrope":
        name = "original_max_position_embeddings"
        settings[name] = rope[name]
    return settings


def _old_scaling(rope: Settings, model_type: str) -> Settings | None:
    """Returns the `rope_scaling` of 4.57, which transformers 5 reads too."""
    if rope["rope_type"] == "default":
        return None
    scaling = {k: v for k, v in rope.items() if k not in (*_BESIDE_SCALING, "type")}
    if model_type in ("phi3", "olmo2"):  # these take no other keys than the oldest
        scaling["type"] = scaling.pop("rope_type")
    if model_type == "phi3":
        scaling.pop("original_max_position_embeddings", None)
    return scaling


def portable_tokenizer(settings: Settings) -> Settings:
    """Returns the settings of a tokenizer whose tokens are those of its tokenizer.json.

    The plain class takes that file as it is. Classes of model families would change it, and not
    in the same way in both versions.
    """
    settings = settings | {"tokenizer_class": "PreTrainedTokenizerFast"}
    # A list under this name is an error in 4.57, and both read it under the old one.
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _rewrite(file: Path, change: Callable[[Settings], Settings]) -> None:
    settings = change(json.loads(file.read_text(encoding="utf-8")))
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
