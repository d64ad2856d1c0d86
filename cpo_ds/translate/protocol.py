"""The published protocol of ALMA-R's evaluation, and how a command differs from it."""

from __future__ import annotations

from typing import NamedTuple

from cpo_ds.translate.prompts_of_rows import SPLIT

BEAMS, NEW_TOKENS, PROMPT_TOKENS, STYLE, CLEANING = 5, 256, 256, "alma", "alma"


class Protocol(NamedTuple):
    """The settings of a command that the published protocol has too."""

    num_beams: int
    max_new_tokens: int
    samples: bool
    style: str
    add_bos: str
    cleaning: str
    max_prompt_tokens: int
    num_long: int
    long: str
    own_do_sample: bool  # the model's generation_config.json asks for sampling
    is_vllm: bool = False


def differences(used: Protocol) -> list[str]:
    """How `used` differs from the published protocol; an empty list if it does not.

    That is beam search with 5 beams by transformers, at most 256 new tokens, ALMA's prompt of at
    most 256 tokens as the tokenizer makes it, and ALMA's cleaning.
    """
    long = "split" if used.long == SPLIT else "served whole"
    reasons = {
        "sampling in place of beam search": used.samples,
        f"{used.num_beams} beams in place of {BEAMS}": (
            used.num_beams != BEAMS and not used.samples
        ),
        f"{used.max_new_tokens} new tokens in place of {NEW_TOKENS}": used.max_new_tokens
        != NEW_TOKENS,
        f"the prompt {used.style} in place of {STYLE}": used.style != STYLE,
        f"add_bos {used.add_bos}": used.add_bos == "never",
        f"the cleaning {used.cleaning} in place of {CLEANING}": used.cleaning != CLEANING,
        f"a limit of {used.max_prompt_tokens} tokens for prompts in place of {PROMPT_TOKENS}": (
            used.max_prompt_tokens != PROMPT_TOKENS
        ),
        f"{used.num_long} sources beyond that limit, {long}": used.num_long > 0,
        "a search although the model's generation_config.json asks for sampling": (
            used.own_do_sample and not used.samples
        ),
        "vLLM in place of transformers": used.is_vllm,
    }
    return [reason for reason, applies in reasons.items() if applies]
