"""A tokenizer with merges across the end of the prompt, and rows to tokenize."""

from __future__ import annotations

import functools
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cpo_ds.data.tokenize import Sharing, tokenize_rows
from cpo_ds.schema import PreferenceRow, TokenizedPair

NO_LIMIT = {"max_prompt_tokens": 10**6, "max_tokens": 10**6, "add_bos": "always"}  # as TRL
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@functools.cache
def merging_tokenizer(bos: bool = True) -> Any:
    """Byte-level BPE with a few merges of two characters, many of them across a boundary."""
    merges = [("b", "c"), ("a", "b"), (":", "d"), ("c", "c"), ("ab", "d")]
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += ["".join(merge) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def row(prompt: str, chosen: str, rejected: str, origin: str = "test") -> PreferenceRow:
    return PreferenceRow(prompt, chosen, (rejected,), "en-de", origin)


def tokenize(
    rows: list[PreferenceRow], tokenizer: Any, sharing: Sharing = "common"
) -> list[TokenizedPair]:
    return tokenize_rows(rows, tokenizer, **NO_LIMIT, sharing=sharing)[0]
