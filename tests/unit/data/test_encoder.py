"""Texts to tokens: special tokens only from the tokenizer and the chat template."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from doors import tokenizers as kinds
from helpers import sequences, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from cpo_ds.data import encoder
from cpo_ds.data.chat import chat_renderer, render_answers
from cpo_ds.data.encoder import TextEncoder, is_marked, unmarked
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow

SPELLED = [*kinds.SPECIAL, "<s>", "</s>", "<pad>", "<unk>"]


@functools.cache
def tokenizer_of(kind: str) -> Any:
    if kind == "bytes":
        return kinds.byte_level(kinds.CHATML)
    with tempfile.TemporaryDirectory() as folder:
        model = kinds.save_sentencepiece(
            Path(folder) / "m", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    # Tokens that take spaces around them along, or are found only between words.
    tokenizer.add_tokens([
        AddedToken("<|im_start|>", special=True, normalized=False, rstrip=True),
        AddedToken("<|im_end|>", special=True, normalized=False, lstrip=True),
        AddedToken("<|eot_id|>", special=True, normalized=False, single_word=True),
    ])  # fmt: skip
    tokenizer.chat_template = kinds.CHATML
    return tokenizer


KINDS = st.sampled_from(["bytes", "sentencepiece"])
PIECES = st.sampled_from(
    ["a", "the ", " old", "  ", "\n", "123", "é", "猫", "😀", "▁", "<", ">", "|", "s"]
)
TEXT = st.lists(PIECES, max_size=8).map("".join)
SPELLING = st.lists(st.one_of(PIECES, st.sampled_from(SPELLED)), max_size=8).map("".join)
UNSPELLED = TEXT.filter(lambda text: not any(token in text for token in SPELLED))
MARKS = st.lists(st.sampled_from(["a", "\ufdd0", "\ufdd1", "</s>", " "]), max_size=6).map("".join)


@settings(max_examples=300, deadline=None)
@given(KINDS, st.one_of(SPELLING, MARKS))
def test_marks_are_taken_away_without_a_trace(kind: str, text: str) -> None:
    encoder = TextEncoder(tokenizer_of(kind))
    assert unmarked(encoder.plain(text)) == text
    assert unmarked(encoder.parsed(text)) == text
    if is_marked(encoder.plain(text)):
        assert any(token in text for token in (*SPELLED, "\ufdd0"))


@settings(max_examples=300, deadline=None)
@given(KINDS, st.one_of(SPELLING, MARKS))
def test_text_is_tokenized_as_transformers_does_without_special_tokens(
    kind: str, text: str
) -> None:
    tokenizer = tokenizer_of(kind)
    expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    encoder = TextEncoder(tokenizer)
    assert encoder.encode([encoder.plain(text)]) == [expected]


@settings(max_examples=300, deadline=None)
@given(KINDS, st.lists(st.one_of(TEXT, st.sampled_from(SPELLED)), max_size=8).map("".join))
def test_both_ways_of_encoding_give_the_same_tokens(kind: str, text: str) -> None:
    """The way of marked texts, for texts without marks: all their special tokens count."""
    tokenizer = tokenizer_of(kind)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    encoder = TextEncoder(tokenizer)
    assert encoder._encode_marked(text) == encoder.encode([text])[0] == expected


@settings(max_examples=200, deadline=None)
@given(KINDS, TEXT.filter(str.strip), SPELLING)
def test_a_conversation_holds_the_templates_special_tokens_alone(
    kind: str, asked: str, answer: str
) -> None:
    tokenizer = tokenizer_of(kind)
    encoder = TextEncoder(tokenizer)
    render = chat_renderer(tokenizer, encoder.plain)
    assert render is not None

    def tokens(text: str) -> list[int]:
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]
        return encoder.encode([render(messages, False)])[0]

    special = set(tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<s>", "</s>"]))
    markers = [token for token in tokens(answer) if token in special]
    assert markers == [token for token in tokens("x") if token in special] and len(markers) == 4


@settings(max_examples=200, deadline=None)
@given(KINDS, UNSPELLED.filter(str.strip), UNSPELLED)
def test_a_pair_has_the_tokens_of_transformers(kind: str, asked: str, answer: str) -> None:
    """Texts that spell no special token, through reading and tokenizing of a row."""
    tokenizer = tokenizer_of(kind)
    render = chat_renderer(tokenizer, TextEncoder(tokenizer).plain)
    assert render is not None
    prompt, chosen, rejected = render_answers(asked, (answer + "x", answer + "y"), render)
    rows = [PreferenceRow(prompt, chosen, (rejected,), "en-de", "here", is_chat=True)]
    stops = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    limits = {"max_prompt_tokens": 999, "max_tokens": 999}
    (pair,), _ = tokenize_rows(rows, tokenizer, stops=stops, **limits)  # type: ignore[arg-type]
    for ids, end in zip(sequences(pair), "xy", strict=True):
        messages = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer + end},
        ]
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        assert ids == whole[: len(ids)] and ids[-1] == stops[0]
        assert tokenizer.decode(whole[len(ids) :]).strip() == ""


def test_many_texts_are_tokenized_in_parts_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TextEncoder(tiny_tokenizer())
    texts = [f"the old house {number}" for number in range(10)]
    texts[4] = tiny.plain("a </s> in a text")
    whole = tiny.encode(texts)
    monkeypatch.setattr(encoder, "_AT_ONCE", 3)
    assert tiny.encode(texts) == whole == [tiny.encode([text])[0] for text in texts]
    assert tiny.encode([]) == []


def test_overlapping_special_tokens_are_characters_too() -> None:
    tokenizer = kinds.byte_level(kinds.CHATML)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<a>", "a>b", ">", "b<"]})
    encoder = TextEncoder(tokenizer)
    for text in ("<a>b", "x<a>b<", "a>b<a>"):
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert encoder.encode([encoder.plain(text)]) == [expected]
        assert encoder.encode([text]) != [expected]


def test_special_tokens_that_a_normalizer_changes_are_refused_beside_text_that_spells_one() -> None:
    """The tokenizer of transformers 4 for Llama-2, with special tokens looked up after it."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of("sentencepiece").backend_tokenizer, eos_token="</s>"
    )
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_tokens([AddedToken("<|x|>", special=True, normalized=True)])
    encoder = TextEncoder(tokenizer)
    text = encoder.plain("a </s>")
    assert len(encoder.encode([text])[0]) > 3
    with pytest.raises(UserError, match=r"spells a special token \(...'a </s>x<|x|>'"):
        encoder.encode([f"{text}x<|x|>"])


@pytest.mark.parametrize(
    ("options", "add_bos", "text", "chat"),
    [
        ({}, "auto", [], []),
        ({"puts_bos": True}, "auto", [1], []),
        ({"puts_bos": True, "puts_eos": True}, "auto", [1], []),
        ({"puts_bos": True}, "never", [], []),
        ({}, "always", [1], [1]),
        ({"puts_bos": True}, "always", [1], [1]),
        ({"bos_token": None}, "always", [], []),
    ],
)
def test_the_beginning(options: dict[str, Any], add_bos: Any, text: list[int], chat: Any) -> None:
    tokenizer = kinds.byte_level(**options)
    encoder = TextEncoder(tokenizer, add_bos)
    (ids,) = encoder.encode(["the house"])
    assert encoder.prompts(["the house"], is_chat=False) == [[*text, *ids]]
    assert encoder.prompts(["the house"], is_chat=True) == [[*chat, *ids]]
    if tokenizer.bos_token:  # written by a template, or in a text whose special tokens count
        written = [] if add_bos == "never" else [1]
        for is_chat in (True, False):
            assert encoder.prompts(["<s>the house"], is_chat=is_chat) == [[*written, *ids]]


@pytest.mark.parametrize(
    ("completion", "stops", "cut"),
    [
        ("das<|im_end|>\n", ["</s>"], "das<|im_end|>"),
        ("das<|end|>\n</s>", ["</s>", "<|end|>"], "das<|end|>"),
        ("das<|end|>\n</s>", ["</s>"], "das<|end|>\n</s>"),
        ("das </s>", ["</s>"], "das </s>"),
        ("<|user|>das<|eot_id|> \n ", ["<|eot_id|>"], "<|user|>das<|eot_id|>"),
        ("das\n", ["</s>"], None),
        ("das</s>!", ["</s>"], None),
    ],
)
def test_the_end_of_a_turn(completion: str, stops: list[str], cut: str | None) -> None:
    tokenizer = kinds.byte_level()
    encoder = TextEncoder(tokenizer, stops=tokenizer.convert_tokens_to_ids(stops))
    assert encoder.end_of_turn(completion) == (cut or completion, cut is not None)
    # The text of an answer ends no turn.
    assert encoder.end_of_turn(encoder.plain(completion))[1] is False
