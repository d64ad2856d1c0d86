"""Chat templates: arguments, days, several of them, and those that refuse."""

from __future__ import annotations

import resource
import signal
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from doors import tokenizers as kinds
from jinja2 import TemplateError
from transformers import AutoTokenizer

from cpo_ds.data import template_limits
from cpo_ds.data.chat import chat_renderer, prints_date, render_answers
from cpo_ds.data.rows import read_rows
from cpo_ds.errors import UserError
from cpo_ds.settings.data import DataConfig
from cpo_ds.translate.tokens import tokenize_prompts

USER = {"role": "user", "content": "Hi?"}


def rendered(template: Any, messages: list[dict[str, str]] | None = None, **options: Any) -> str:
    render = chat_renderer(kinds.byte_level(template), **options)
    assert render is not None
    return render(messages or [USER], True)


def test_no_template_is_no_renderer() -> None:
    assert chat_renderer(kinds.byte_level()) is None


def test_arguments_reach_the_template() -> None:
    off = rendered(kinds.QWEN3, arguments={"enable_thinking": False})
    assert off == rendered(kinds.QWEN3) + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_thinkin": False}, r"no argument enable_thinkin \(did you mean enable_thinking"),
        ({"tokenize": True}, "no argument tokenize"),
        ({"add_generation_prompt": False}, "no argument add_generation_prompt"),
        ({"messages": []}, "no argument messages"),
        ({"chat_template": "rag"}, "chat templates default, and none is named rag"),
    ],
)
def test_arguments_that_the_template_lacks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rendered(kinds.QWEN3, arguments=arguments)


def test_an_argument_with_a_default_in_the_template() -> None:
    template = "{% set style = style | default('short') %}{{ style }}: {{ messages[0].content }}"
    assert rendered(template, arguments={"style": "long"}) == "long: Hi?"
    macro = "{% macro m(x) %}{{ x }}{{ tone }}{% endmacro %}{{ m(messages[0].content) }}"
    assert rendered(macro, arguments={"tone": "!"}) == "Hi?!"


def test_several_templates() -> None:
    both = {"default": kinds.CHATML, "short": kinds.LLAMA2}
    assert rendered(both) == rendered(kinds.CHATML)
    short = rendered(both, arguments={"chat_template": "short"})
    assert short == rendered(kinds.LLAMA2)
    with pytest.raises(UserError, match=r"templates a, b, and none of them is the default; choose"):
        rendered({"b": kinds.CHATML, "a": kinds.CHATML})


def test_the_day_that_a_template_prints() -> None:
    assert "Today Date: 31 Jan 2026<" in rendered(kinds.DATED, day="2026-01-31")
    assert "Today Date: 01 Feb 2026<" in rendered(kinds.DATED, day="2026-02-01")
    assert date.today().strftime(": %d %b %Y<") in rendered(kinds.DATED)
    assert prints_date(kinds.byte_level(kinds.DATED))
    assert prints_date(kinds.byte_level({"a": kinds.CHATML, "b": kinds.DATED}))
    assert not prints_date(kinds.byte_level(kinds.CHATML)) and not prints_date(kinds.byte_level())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (kinds.NEEDS_SYSTEM, "no system"),
        (kinds.PARTS, "leaves out"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[0].content.absent.more }}", "no attribute"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content | upper }}", "changes the user's text"),
    ],
)
def test_a_template_that_fails_is_one_kind_of_error(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        rendered(template)


BILLIONS = "{% for i in range(10**5) %}{% for j in range(10**5) %}BODY{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (BILLIONS, "does not end within 0.5 s"),
        (BILLIONS.replace("BODY", "{{ messages[0].content }}"), "does not end within 0.5 s"),
        ("{% for i in range(10**12) %}x{% endfor %}", "OverflowError"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "calls itself without end"),
        (f"{{{{ {'(' * 3000}1{')' * 3000} }}}}", "nested too deeply"),
        ("{{ 'x' * 10**13 }}", "more than 1024 MiB of memory"),
        ("{{ 'x' | center(10**11) }}", "more than 1024 MiB of memory"),
        (f"{DOUBLED}{{{{ n.s }}}}", "more than 1024 MiB of memory|does not end"),
        ("{{ range(100000) | list * 10**6 }}", "more than 1024 MiB of memory"),
        ("{{ messages[0].content * 10**6 }}", "makes 3000000 characters of a conversation of 3"),
    ],
)
def test_a_template_that_takes_too_much_is_stopped(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.5)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    kinds.byte_level(template).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    render = chat_renderer(tokenizer)
    assert render is not None
    for _ in range(2):
        with pytest.raises(TemplateError, match=f"^{tmp_path}/chat_template.jinja: .*({message})"):
            render([USER], True)
    # Nothing of the limits is left.
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_such_a_template_is_refused_in_training_and_for_candidates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.5)
    kinds.byte_level(BILLIONS).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    problem = rf"\({tmp_path}/chat_template.jinja: it does not end within 0.5 s\)"
    with pytest.raises(UserError, match=f"refuses the prompt {problem}; take --prompt"):
        tokenize_prompts([[USER]], tokenizer)
    sample = DataConfig(format="sample", prompt_style="chat")
    with pytest.raises(UserError, match=f", line 1: .* refuses this conversation {problem}"):
        read_rows(sample, chat_renderer(tokenizer))


def test_an_honest_long_template_is_no_template_that_takes_too_much() -> None:
    text = "Hi? " * 500_000
    assert text in rendered(kinds.CHATML, [{"role": "user", "content": text}])


def test_answers_follow_the_prompt_that_a_model_continues() -> None:
    for template, end in ((kinds.CHATML, "<|im_end|>\n"), (kinds.LLAMA3, "<|eot_id|>")):
        render = chat_renderer(kinds.byte_level(template))
        assert render is not None
        prompt, chosen, rejected = render_answers("Hi?", ("Hallo", "He"), render)
        assert (prompt, chosen, rejected) == (render([USER], True), "Hallo" + end, "He" + end)
    thinking = chat_renderer(kinds.byte_level(kinds.OPEN_THOUGHT))
    assert thinking is not None
    with pytest.raises(TemplateError, match="writes the prompt otherwise if an answer follows"):
        render_answers("Hi?", ("Hallo", "He"), thinking)
