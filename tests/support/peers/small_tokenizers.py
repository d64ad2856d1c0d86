"""Small tokenizers of every class that the supported families use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import transformers
from tokenizers import pre_tokenizers

WORDS = ("haus", "das", "house", "the", "straße")
SPECIAL = ["<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Maker = Callable[..., Any]


def _merges(alphabet: list[str], space: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that put `WORDS`, each after a space, together from the left."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for text in (word, space + word):
            pieces = [c for c in text if c in alphabet]
            while len(pieces) > 1:
                merges[pieces[0], pieces[1]] = None
                pieces[:2] = ["".join(pieces[:2])]
    tokens = dict.fromkeys(alphabet)
    tokens |= dict.fromkeys(a + b for a, b in merges)
    return {token: index for index, token in enumerate(tokens)}, list(merges)


def byte_level(maker: Maker, special: list[str], **settings: Any) -> Any:
    """A tokenizer over bytes, as of GPT-2."""
    alphabet = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _merges(alphabet, "Ġ")
    return maker(vocab=vocabulary, merges=merges, **settings)


def spaces_as_letters(maker: Maker, special: list[str], **settings: Any) -> Any:
    """A tokenizer with `▁` for a space and bytes for unknown letters, as of SentencePiece."""
    letters = ["▁", *sorted({c for word in WORDS for c in word}), ".", ","]
    alphabet = special + [f"<0x{byte:02X}>" for byte in range(256)] + letters
    vocabulary, merges = _merges(alphabet, "▁")
    return maker(vocab=vocabulary, merges=merges, **settings)


def _llama(**settings: Any) -> Any:
    return spaces_as_letters(
        transformers.LlamaTokenizer, ["<unk>", "<s>", "</s>"], pad_token="</s>", **settings
    )


def _gemma() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return spaces_as_letters(transformers.GemmaTokenizer, special, add_bos_token=True)


def _qwen2() -> Any:
    return byte_level(
        transformers.Qwen2Tokenizer,
        ["<|endoftext|>", *SPECIAL],
        eos_token="<|im_end|>",
        extra_special_tokens=SPECIAL,
        chat_template=CHATML,
    )


def _cohere() -> Any:
    special = ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>"]
    special.append("<|END_OF_TURN_TOKEN|>")
    return byte_level(transformers.CohereTokenizer, special, add_bos_token=True)


def _gpt2() -> Any:
    return byte_level(transformers.GPT2Tokenizer, ["<|endoftext|>"])


MAKERS: dict[str, Callable[[], Any]] = {
    "Llama": _llama,
    "Llama without BOS": functools.partial(_llama, add_bos_token=False),
    "Llama, legacy": functools.partial(_llama, legacy=True, add_bos_token=True),
    "Llama with more": functools.partial(_llama, extra_special_tokens=SPECIAL, add_eos_token=True),
    "Gemma": _gemma,
    "Qwen2": _qwen2,
    "Cohere": _cohere,
    "GPT-2": _gpt2,
}
