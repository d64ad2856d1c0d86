"""Prompts for models that translate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from helpers import tiny_tokenizer
from translation_runs import write

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import alma_prompt, few_shot_prompt, gpt4_messages
from cpo_ds.errors import UserError
from cpo_ds.translate.prompting import prompt_maker
from cpo_ds.translate.tokens import tokenize_prompts


def row(source: str, language_pair: str = "en-de") -> CandidateRow:
    return CandidateRow(language_pair, source, None, {}, {}, "x.jsonl, line 1")


# Prompts.


def test_few_shot_and_gpt4_prompts_are_those_of_the_papers() -> None:
    assert few_shot_prompt("Hi.", "en", "de", [("One.", "Eins."), ("Two.", "Zwei.")]) == (
        "Translate this from English to German:\nEnglish: One.\nGerman: Eins.\n"
        "English: Two.\nGerman: Zwei.\nEnglish: Hi.\nGerman:"
    )
    assert few_shot_prompt("Hi.", "en", "zh", []) == alma_prompt("Hi.", "en", "zh")
    assert gpt4_messages("Hallo.", "de", "en") == [
        {"role": "system", "content": "You are a helpful translator and only output the result."},
        {
            "role": "user",
            "content": "### Translate this from German to English, German: Hallo. ### English:",
        },
    ]


def test_chat_prompt_goes_through_the_models_template_and_alma_begins_with_its_first_token() -> (
    None
):
    tokenizer = tiny_tokenizer()
    alma = "Translate this from English to German:\nEnglish: Hi.\nGerman:"
    chat = prompt_maker("chat", None, None)(row("Hi."))
    assert chat == [{"role": "user", "content": alma}]
    assert prompt_maker("alma", None, None)(row("Hi.")) == alma
    (ids,) = tokenize_prompts([chat], tokenizer)
    assert tokenizer.decode(ids) == f"<s>[user]{alma}[assistant]"


def test_prompts_lose_an_end_that_the_tokenizer_adds() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(tiny_tokenizer().backend_tokenizer).from_str(
            tiny_tokenizer().backend_tokenizer.to_str()
        ),
        eos_token="</s>",
        bos_token="<s>",
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    (ids,) = tokenize_prompts(["the old house"], tokenizer)
    assert ids[0] == 1 and ids[-1] != 2
    with pytest.raises(UserError, match="no chat template"):
        tokenize_prompts([gpt4_messages("Hi.", "en", "de")], tokenizer)


def test_examples_are_the_first_of_the_direction_and_never_the_sentence_itself(
    tmp_path: Path,
) -> None:
    pairs = [("en-de", "A", "a"), ("de-en", "x", "X"), ("en-de", "B", "b"), ("en-de", "C", "c")]
    keys = ("language_pair", "source", "reference")
    lines = [json.dumps(dict(zip(keys, pair, strict=True))) for pair in pairs]
    file = write(tmp_path / "shots.jsonl", *lines)
    prompt = prompt_maker("few-shot", file, 2)
    assert prompt(row("A")) == few_shot_prompt("A", "en", "de", [("B", "b"), ("C", "c")])
    assert prompt(row("\u200bA ")) == few_shot_prompt(
        "\u200bA ", "en", "de", [("B", "b"), ("C", "c")]
    )
    assert prompt(row("Q")) == few_shot_prompt("Q", "en", "de", [("A", "a"), ("B", "b")])
    with pytest.raises(UserError, match="has 1 examples with a reference of de-en"):
        prompt(row("q", "de-en"))
