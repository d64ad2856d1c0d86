"""Tokens of prompts for candidates: options, the day of a template, text of special tokens."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from doors import tokenizers as kinds

from cpo_ds.errors import UserError
from cpo_ds.translate import tokens
from cpo_ds.translate.tokens import PromptSettings, prompt_settings, tokenize_prompts


def options(**given: Any) -> Namespace:
    return Namespace(**{"add_bos": None, "chat_template_kwargs": None, "prompt": "chat"} | given)


def test_options_are_the_settings() -> None:
    assert prompt_settings(options()) == PromptSettings()
    text = '{"enable_thinking": false}'
    settings = prompt_settings(options(add_bos="never", chat_template_kwargs=text))
    assert settings == PromptSettings("never", {"enable_thinking": False})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chat_template_kwargs": "enable_thinking=false"}, "write a JSON object, such as"),
        ({"chat_template_kwargs": "[1]"}, "write a JSON object, such as"),
        ({"chat_template_kwargs": '{"a": 1}', "prompt": "alma"}, "no effect without --prompt chat"),
        ({"chat_template_kwargs": '{"a": 1}', "prompt": None}, "no effect without --prompt chat"),
    ],
)
def test_options_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompt_settings(options(**given))


def test_settings_reach_the_tokens() -> None:
    tokenizer = kinds.byte_level(kinds.QWEN3)
    chat = [[{"role": "user", "content": "a </s> b"}]]
    (plain,) = tokenize_prompts(chat, tokenizer)
    (thought,) = tokenize_prompts(
        chat, tokenizer, PromptSettings("always", {"enable_thinking": False})
    )
    assert tokenizer.decode(thought) == "<s>" + tokenizer.decode(plain) + "<think>\n\n</think>\n\n"
    assert 2 not in plain  # the </s> of the text is no token of its own
    (text,) = tokenize_prompts(["a </s> b"], tokenizer, PromptSettings("always"))
    assert text[0] == 1 and 2 not in text


def test_a_template_prints_the_day_of_the_first_start(tmp_path: Path) -> None:
    dated = kinds.byte_level(kinds.DATED)
    assert tokens.template_date(kinds.byte_level(kinds.CHATML), tmp_path) is None
    first = tokens.template_date(dated, tmp_path)
    with mock.patch.object(tokens, "date") as calendar:
        calendar.today.return_value.isoformat.return_value = "2031-01-02"
        assert tokens.template_date(dated, tmp_path) == first != "2031-01-02"
        (tmp_path / "new").mkdir()
        assert tokens.template_date(dated, tmp_path / "new") == "2031-01-02"
