"""Settings of decoding for `cpo-ds translate`, and what a model's own file adds to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.storage.results import content_key

# Settings in generation_config.json. Those of this command take the place of the first.
_REPLACED = {"do_sample", "max_length", "max_new_tokens", "num_beams", "num_return_sequences"}
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_APPLIED = {
    "bad_words_ids", "begin_suppress_tokens", "early_stopping", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "remove_invalid_values", "renormalize_logits", "repetition_penalty",
    "sequence_bias", "suppress_tokens",
}  # fmt: skip
# These would choose another way of decoding, or make answers depend on the machine's speed.
_REFUSED = {
    "constraints", "diversity_penalty", "dola_layers", "force_words_ids", "guidance_scale",
    "max_time", "num_beam_groups", "penalty_alpha", "prompt_lookup_num_tokens", "stop_strings",
    "token_healing", "watermarking_config",
}  # fmt: skip
_REFUSED_IN_SAMPLING = {"epsilon_cutoff", "eta_cutoff", "top_h", "typical_p"}
_NEUTRAL = (None, 0, 0.0, 1, 1.0, False)  # values that switch such a setting off


@dataclass(frozen=True)
class Decoding:
    """How answers are searched or sampled. Each setting can change the translation.

    `samples` is 0 for a search. A setting of sampling that is None is the model's own.
    """

    num_beams: int = 5
    max_new_tokens: int = 256
    samples: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0

    @property
    def draws(self) -> range:
        """The numbers of a prompt's answers."""
        return range(max(1, self.samples))

    def with_own(self, own: dict[str, Any]) -> Decoding:
        """Takes settings of sampling from the model's where none is given, or switches them off."""
        if not self.samples:
            return self
        off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return Decoding(**off | {k: own[k] for k in _OF_SAMPLING if k in own} | given)

    def seed_of(self, tokens: Sequence[int], draw: int) -> int:
        """The seed of one sample; it depends on nothing but the prompt and the seed given."""
        return int(content_key(json.dumps([self.seed, draw, *tokens]))[:12], 16)


@dataclass(frozen=True)
class OwnSettings:
    """Settings of a model's generation_config.json: those that count, and those that do not."""

    applied: dict[str, Any]
    without_effect: dict[str, Any]

    @property
    def lines(self) -> list[str]:
        """Lines to print."""
        groups = (("apply", self.applied), ("have no effect here", self.without_effect))
        return [
            f"settings of the model's generation_config.json that {verb}: {_listed(values)}"
            for verb, values in groups
            if values
        ]


def own_settings(settings: dict[str, Any], name: str, *, samples: bool) -> OwnSettings:
    """Sorts a generation_config.json's settings by whether they count.

    `settings` are those that differ from transformers' defaults. Raises `UserError`, naming the
    model, for a setting that asks for another way of decoding.
    """
    refused = _REFUSED | (_REFUSED_IN_SAMPLING if samples else set())
    bad = {k: v for k, v in settings.items() if k in refused and v not in _NEUTRAL}
    if bad:
        raise UserError(
            f"generation_config.json of the model {name} sets {_listed(bad)}, by which this "
            "command cannot decode; remove it in a copy of the model's folder."
        )
    of_sampling = set(_OF_SAMPLING) | _REFUSED_IN_SAMPLING
    applied = _APPLIED | (set(_OF_SAMPLING) if samples else set())
    ignored = _REPLACED | (set() if samples else of_sampling)
    return OwnSettings(
        {key: value for key, value in sorted(settings.items()) if key in applied},
        {key: value for key, value in sorted(settings.items()) if key in ignored},
    )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
