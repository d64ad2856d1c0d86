"""Tokenizers as they come: of SentencePiece alone, damaged, missing, and where an answer ends."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from doors import tokenizers as kinds

from cpo_ds.errors import UserError
from cpo_ds.model.load import read_model_config
from cpo_ds.model.tokenizer import load_tokenizer, stop_tokens

LLAMA = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
TEXTS = [
    "the  old",
    "a  b   c     d",
    "x:\n    return 12345\n\n\t end",
    "猫と犬 кот",
    "ﬁ 😀 é  ",
    "1  2",
]


@pytest.fixture
def model() -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=kinds.sentencepiece_model())


@pytest.mark.parametrize("model_type", ["llama", "mistral", "phi3", "gemma"])
@pytest.mark.parametrize(
    "settings",
    [None, LLAMA, LLAMA | {"legacy": True}, LLAMA | {"legacy": False}, LLAMA | {"use_fast": False}],
)
def test_a_sentencepiece_model_alone_gives_its_own_tokens(
    tmp_path: Path, model: Any, model_type: str, settings: Any
) -> None:
    folder = kinds.save_sentencepiece(tmp_path / "m", settings, model_type=model_type)
    plain = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(str(folder))
    draw = random.Random(3)
    pieces = ["the", " ", "  ", "   ", "old", "\n", "7", "é", "猫", "\t", ":"]
    texts = TEXTS + ["x" + "".join(draw.choices(pieces, k=9)) for _ in range(200)]

    def tokens(tokenizer: Any, text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert [tokens(ours, text) for text in texts] == [model.encode(text) for text in texts]
    assert any(tokens(plain, text) != model.encode(text) for text in texts)  # why it is not taken
    assert ours("x")["input_ids"][:1] == ([1] if settings else model.encode("x")[:1])
    # An export of it is read by transformers as it is here.
    ours.save_pretrained(tmp_path / "export")
    (tmp_path / "export" / "config.json").write_text((folder / "config.json").read_text())
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert [tokens(again, text) for text in texts] == [model.encode(text) for text in texts]


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "GemmaTokenizer"}])
def test_a_sentencepiece_model_that_puts_no_space_before_texts(
    tmp_path: Path, settings: Any
) -> None:
    options = {"model_type": "gemma", "begins_with_space": False}
    folder = kinds.save_sentencepiece(tmp_path / "m", settings, **options)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ours = load_tokenizer(str(folder))
    plain = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [model.encode(text) for text in [*TEXTS, "  a"]]
    assert [ours(t, add_special_tokens=False)["input_ids"] for t in [*TEXTS, "  a"]] == expected
    assert [plain(t, add_special_tokens=False)["input_ids"] for t in [*TEXTS, "  a"]] != expected


def test_a_sentencepiece_model_that_no_conversion_serves_is_refused(tmp_path: Path) -> None:
    # transformers reads a Qwen2's tokenizer as byte-level BPE, from an export too.
    folder = kinds.save_sentencepiece(tmp_path / "qwen", LLAMA, model_type="qwen2")
    with pytest.raises(UserError, match="gives other tokens"):
        load_tokenizer(str(folder))
    settings = LLAMA | {"add_prefix_space": False}
    folder = kinds.save_sentencepiece(tmp_path / "m", settings)
    with pytest.raises(UserError, match=r"tokenizer\.model is a SentencePiece model without a tok"):
        load_tokenizer(str(folder))
    # The tokenizer.json that belongs to the model decides.
    kinds.byte_level().save_pretrained(folder)
    assert load_tokenizer(str(folder)).convert_tokens_to_ids("</s>") == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', "", "\x00"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    folder = kinds.save_folder(tmp_path / "m", kinds.byte_level())
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=f"the tokenizer in {folder} cannot be read: "):
        load_tokenizer(str(folder))


def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path) -> None:
    folder = kinds.save_sentencepiece(tmp_path / "m", LLAMA)
    (folder / "tokenizer.model").write_bytes(b"\x00\x01nothing")
    with pytest.raises(UserError, match=f"the tokenizer in {folder} cannot be read: "):
        load_tokenizer(str(folder))


def test_where_an_answer_ends(tmp_path: Path) -> None:
    def ends(folder: Path) -> list[int]:
        return stop_tokens(str(folder), read_model_config(str(folder)))

    tokenizer = kinds.byte_level()
    several = ["</s>", "<|end|>"]
    assert ends(kinds.save_folder(tmp_path / "a", tokenizer, stops=several)) == [2, 409]
    assert ends(kinds.save_folder(tmp_path / "b", tokenizer, eos_token_id=7)) == [7]
    assert ends(kinds.save_folder(tmp_path / "c", tokenizer, eos_token_id=[7, 8])) == [7, 8]
    assert ends(kinds.save_folder(tmp_path / "d", tokenizer, eos_token_id=None)) == []
