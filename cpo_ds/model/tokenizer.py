"""Loads a model's tokenizer, and refuses one that gives other tokens than the model knows."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from tokenizers.models import BPE
from transformers.utils import cached_file

from cpo_ds.errors import UserError
from cpo_ds.model.base_settings import check_tokenizer, read_settings
from cpo_ds.model.hub import unavailable

# Texts that conversions of SentencePiece models get wrong: the first word, digits, spaces in a row,
# indents, joined scripts, letters with several code points, and bytes.
_PROBES = (
    "Translate this from English to German:\nEnglish: The old house.\nGerman:",
    "a  b   c    d     e",
    "if x:\n    return 12345 + 6.7\n\n\tend ",
    "2026年11月 東京は猫 кот und Straße, naïve e\u0301te\u0301",
    "ﬁ Å ① \u00a0 \u3000 … “q” 😀 👩‍👩‍👧 \u200b ᚠ",
)


def load_tokenizer(name_or_path: str) -> Any:
    """The tokenizer of a base model. Raises `UserError` if it cannot be read, or is not exact."""
    read_settings(name_or_path)  # its errors say more than those of transformers
    return read_tokenizer(name_or_path)


def read_tokenizer(name_or_path: str) -> Any:
    """The tokenizer in a folder, a model's or an adapter's. Raises `UserError` as above."""
    check_tokenizer(name_or_path)
    tokenizer = _load(transformers.AutoTokenizer, name_or_path)
    file = _find(name_or_path, "tokenizer.model")
    if file is None or _find(name_or_path, "tokenizer.json"):
        return tokenizer
    return _like_sentencepiece(tokenizer, file)


def stop_tokens(name_or_path: str, model_config: Any) -> list[int]:
    """The tokens at which the model's generation ends, by its files; none if they do not say."""
    try:
        generation = transformers.GenerationConfig.from_pretrained(name_or_path)
        ends = generation.eos_token_id
    except (OSError, ValueError):  # most base models have no such file
        ends = None
    if ends is None:
        ends = getattr(model_config.get_text_config(), "eos_token_id", None)
    return [ends] if isinstance(ends, int) else list(ends or [])


def _find(name_or_path: str, name: str) -> Path | None:
    """A file of a model's folder, or of its repository; None if there is none."""
    try:
        path = cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # the tokenizer was read, so it lies somewhere else
        return None
    return None if path is None else Path(path)


def _load(loader: Any, name_or_path: str) -> Any:
    try:
        return loader.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # tokenizers, written in Rust, raises plain exceptions
        raise unavailable("tokenizer", name_or_path, error) from None


def _like_sentencepiece(tokenizer: Any, file: Path) -> Any:
    """The tokenizer of a folder with a SentencePiece model alone, if its tokens are the model's.

    transformers converts such a model, but may leave out the space that begins a text, and orders
    merges by the pieces' numbers and not by their scores. Raises `UserError` if a conversion
    without these faults gives other tokens, too.
    """
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):  # models of tiktoken may have that name, too
        return tokenizer
    problem = _differing(tokenizer, model)
    if problem is None:
        return tokenizer
    with_space = _load(transformers.LlamaTokenizer, str(file.parent))
    with_space.chat_template = tokenizer.chat_template
    for other in (tokenizer, with_space):
        other.backend_tokenizer.model = _bpe(model)
        if _differing(other, model) is None and _differing(_exported(other, file), model) is None:
            return other
    raise UserError(
        f"{file} is a SentencePiece model without a tokenizer.json, and transformers makes a "
        f"tokenizer of it that gives other tokens, for example of {problem!r}; add the "
        "tokenizer.json that belongs to the model."
    )


def _exported(tokenizer: Any, file: Path) -> Any:
    """The tokenizer as transformers reads it from a run's export."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        if (settings := file.with_name("config.json")).is_file():
            shutil.copy(settings, folder)
        return _load(transformers.AutoTokenizer, folder)


def _bpe(model: Any) -> BPE:
    """SentencePiece's pieces as a BPE that joins the pair of the highest score first."""
    pieces = {model.id_to_piece(token): token for token in range(model.get_piece_size())}
    merges = [
        (-model.get_score(token), token, (piece[:cut], piece[cut:]))
        for piece, token in pieces.items()
        if not (model.is_control(token) or model.is_unknown(token) or model.is_byte(token))
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    ranked = [pair for _, _, pair in sorted(merges)]
    return BPE(vocab=pieces, merges=ranked, fuse_unk=True, byte_fallback=True)


def _differing(tokenizer: Any, model: Any) -> str | None:
    """The first text of which a tokenizer gives other tokens than the SentencePiece model."""
    for text in _PROBES:
        if tokenizer(text, add_special_tokens=False)["input_ids"] != model.encode(text):
            return text
    return None
