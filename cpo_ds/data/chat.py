"""Renders conversations by a tokenizer's chat template."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta

from cpo_ds.data.prompts import Message, RenderChat
from cpo_ds.data.template_limits import check_length, limited
from cpo_ds.errors import UserError, did_you_mean, one_line

_NAME = "chat_template"  # the argument that chooses one of several templates
_RESERVED = {"messages", "add_generation_prompt", "tools", "documents"}  # not for the user to set
_DATE = "strftime_now"  # the function by which a template prints the time

# Errors that a template may raise, those of Python mostly by a message that is not what it expects.
_FAULTS = (
    TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    AssertionError, TemplateError,
)  # fmt: skip


def chat_renderer(
    tokenizer: Any,
    plain: Callable[[str], str] = str,
    arguments: Mapping[str, Any] | None = None,
    day: str | None = None,
) -> RenderChat | None:
    """The tokenizer's chat template as a function of messages; None if it has no template.

    `plain` is applied to the texts of messages first. `arguments` are variables of the template,
    and `day`, like 2026-01-31, is the day that it prints; None is today. The function raises
    `UserError` if none of several templates is chosen or an argument is unknown, and jinja2's
    `TemplateError` if the template fails, does not end, or changes the user's text.
    """
    if not tokenizer.chat_template:
        return None
    values = dict(arguments or {})
    template = functools.cache(lambda: _checked_template(tokenizer, values, day))

    def render(messages: list[Message], add_generation_prompt: bool) -> str:
        texts = [m | {"content": plain(m["content"])} if "content" in m else m for m in messages]
        try:
            with limited():
                text = tokenizer.apply_chat_template(
                    texts,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **values | {_NAME: template()},
                )
            check_length(text, sum(len(str(m.get("content"))) for m in texts))
        except _FAULTS as error:
            if type(error) is TemplateError:  # the template's own words about the conversation
                raise
            problem = one_line(error)
            if not isinstance(error, TemplateError):
                problem = f"{type(error).__name__}: {problem}"
            raise TemplateError(f"{template_file(tokenizer, values)}: {problem}") from None
        asked = [m["content"] for m in texts if m["role"] == "user"]
        if asked and asked[-1].strip() not in text:
            raise TemplateError("it leaves out or changes the user's text")
        return text

    return render


def render_answers(prompt: str, answers: Sequence[str], render: RenderChat) -> tuple[str, ...]:
    """Renders a user's turn and answers to it: the prompt, and each answer to its end.

    The prompt is the one that a model continues. Raises `TemplateError` if the template writes it
    otherwise before an answer.
    """
    user = {"role": "user", "content": prompt}
    opening = render([user], True)
    wholes = [render([user, {"role": "assistant", "content": answer}], False) for answer in answers]
    if not all(whole.startswith(opening) for whole in wholes):
        raise TemplateError(
            "it writes the prompt otherwise if an answer follows, which chat_template_kwargs "
            "may change"
        )
    return opening, *(whole[len(opening) :] for whole in wholes)


def template_file(tokenizer: Any, arguments: Mapping[str, Any]) -> str:
    """The file of the tokenizer's folder that holds the template in use, for messages."""
    folder = Path(tokenizer.name_or_path)
    name = arguments.get(_NAME, "default")
    names = ["chat_template.jinja"] if name == "default" else []
    names += [f"additional_chat_templates/{name}.jinja", "tokenizer_config.json"]
    files = [folder / file for file in names if (folder / file).is_file()]
    return str(files[0] if files else tokenizer.name_or_path or "its text")


def prints_date(tokenizer: Any) -> bool:
    """Whether one of the tokenizer's chat templates prints the time."""
    templates = tokenizer.chat_template or {}
    texts = templates.values() if isinstance(templates, dict) else [templates]
    return any(_DATE in text for text in texts)


def _checked_template(tokenizer: Any, arguments: Mapping[str, Any], day: str | None) -> str:
    """The template to use, with the day that it prints. Raises `UserError`."""
    from transformers.utils import chat_template_utils

    # Choose one of several templates.
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        templates = {"default": templates}
    name = arguments.get(_NAME, "default")
    if name not in templates:
        names = ", ".join(sorted(templates))
        problem = f"none is named {name}" if _NAME in arguments else "none of them is the default"
        raise UserError(
            f"the tokenizer has the chat templates {names}, and {problem}; choose one, for example "
            f"by chat_template_kwargs: {{{_NAME}: {min(templates)}}}."
        )
    template = templates[name]

    # An argument that the template does not use would change nothing without a word.
    compiled = chat_template_utils._compile_jinja_template(template)
    used = meta.find_undeclared_variables(compiled.environment.parse(template))
    special = set(tokenizer.special_tokens_map)
    for argument in arguments:
        if argument == _NAME or (argument in used and argument not in _RESERVED):
            continue
        known = sorted(used - _RESERVED - set(compiled.environment.globals) - special)
        others = f", or take one of: {', '.join(known)}" if known else ""
        raise UserError(
            f"chat_template_kwargs: the chat template has no argument {argument}"
            f"{did_you_mean(argument, known)}; remove it{others}."
        )
    # transformers passes no functions on to a template, and keeps the compiled one.
    compiled.globals[_DATE] = (date.fromisoformat(day) if day else date.today()).strftime
    return template
