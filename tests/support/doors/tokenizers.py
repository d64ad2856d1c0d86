"""Tiny tokenizers of every kind that models come with, and chat templates of their families."""

from __future__ import annotations

import copy
import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DATED = LLAMA3.replace(
    "{{ bos_token }}",
    "{{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + "
    "strftime_now('%d %b %Y') + '<|eot_id|>' }}",
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
OPEN_THOUGHT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)
NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"

# Tokens of chat templates, special ones first; the others are added tokens that are text too.
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|end|>",
)  # fmt: skip
TEXT_TOKENS = ("<think>", "</think>")

_LINES = [
    f"Translate this from {a} to {b}:\n{a}: the old house by the sea  {n}{n}\n{b}: das alte Haus"
    for a, b in (("English", "German"), ("Czech", "English"), ("Russian", "English"))
    for n in range(3)
] + ["if x:\n    return 12345\n\n\t end", "кот и 猫と犬 ﬁ Å …"]


@functools.cache
def _byte_level() -> str:
    """A byte-level BPE without special tokens, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False,
        special_tokens=["<pad>", "<s>", "</s>"],
    )  # fmt: skip
    tokenizer.train_from_iterator(_LINES, trainer)
    return tokenizer.to_str()


def byte_level(
    template: Any = None, *, puts_bos: bool = False, puts_eos: bool = False, **tokens: Any
) -> Any:
    """A byte-level BPE as Llama-3's, Qwen's or SmolLM2's, that may put special tokens itself."""
    backend = Tokenizer.from_str(_byte_level())
    if puts_bos or puts_eos:
        single = "<s> " * puts_bos + "$A" + " </s>" * puts_eos
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in TEXT_TOKENS])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | tokens
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template, **names
    )


@functools.cache
def sentencepiece_model(*, begins_with_space: bool = True) -> bytes:
    """A SentencePiece model like Llama-2's, or like Gemma's, which puts no space before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_LINES * 20), model_writer=model, vocab_size=450, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, split_digits=True, pad_id=-1, minloglevel=2,
        allow_whitespace_only_pieces=True, remove_extra_whitespaces=False,
        normalization_rule_name="identity", hard_vocab_limit=False,
        add_dummy_prefix=begins_with_space,
    )  # fmt: skip
    # Like Llama-2's, it joins spaces to each other only if nothing else is left to join.
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    for piece in proto.pieces:
        if len(piece.piece) > 1 and set(piece.piece) == {"▁"}:
            piece.score = -1e9
    return proto.SerializeToString()


def save_folder(
    folder: Path,
    tokenizer: Any = None,
    *,
    embeddings: int = 1000,
    stops: Any = None,
    **settings: Any,
) -> Path:
    """Writes the folder of a small random model: weights, tokenizer, ends of generation."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"vocab_size": embeddings, "hidden_size": 8, "num_attention_heads": 2}
    values |= {"num_hidden_layers": 1, "intermediate_size": 8} | settings
    config = transformers.AutoConfig.for_model(values.pop("model_type", "llama"), **values)
    without_padding = copy.deepcopy(config)
    without_padding.pad_token_id = None  # torch refuses one beyond the embeddings
    transformers.AutoModelForCausalLM.from_config(without_padding).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    config.save_pretrained(folder)
    if stops is not None:
        text = json.dumps({"eos_token_id": tokenizer.convert_tokens_to_ids(list(stops))})
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def save_sentencepiece(
    folder: Path,
    settings: dict[str, Any] | None = None,
    *,
    begins_with_space: bool = True,
    **more: Any,
) -> Path:
    """Writes a model's folder with `tokenizer.model` alone, and tokenizer_config.json if given."""
    save_folder(folder, **more)
    model = sentencepiece_model(begins_with_space=begins_with_space)
    (folder / "tokenizer.model").write_bytes(model)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
