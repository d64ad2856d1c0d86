"""Tokens of prompts that ask for a translation, the same as those of training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from cpo_ds.data.chat import chat_renderer, prints_date
from cpo_ds.data.encoder import TextEncoder
from cpo_ds.errors import UserError, one_line
from cpo_ds.settings.data import AddBos
from cpo_ds.storage.files import replacing
from cpo_ds.translate.prompting import Prompt


@dataclass(frozen=True)
class PromptSettings:
    """Settings of prompts' tokens, as in the `data` section of a recipe."""

    add_bos: AddBos = "auto"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    template_date: str | None = None


def prompt_settings(arguments: argparse.Namespace) -> PromptSettings:
    """The settings by the options. Raises `UserError` if `--chat-template-kwargs` is no object."""
    text = arguments.chat_template_kwargs or "{}"
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(
            f"--chat-template-kwargs {text}: write a JSON object, such as "
            "'{\"enable_thinking\": false}'."
        )
    if values and arguments.prompt not in ("chat", "gpt4"):
        raise UserError(
            "--chat-template-kwargs has no effect without --prompt chat or gpt4; leave it out."
        )
    return PromptSettings(arguments.add_bos or "auto", values)


def template_date(tokenizer: Any, folder: Path) -> str | None:
    """The day that a chat template prints: that of the first start with this folder of results.

    None if the template prints none. So a run that goes on tomorrow has the same prompts.
    """
    if not prints_date(tokenizer):
        return None
    file = folder / "template_date"
    if not file.exists():
        with replacing(file) as unfinished:
            unfinished.write_text(date.today().isoformat(), encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: Any, settings: PromptSettings | None = None
) -> list[list[int]]:
    """The tokens of each prompt, either all texts or all conversations.

    Conversations are rendered by the tokenizer's chat template. Raises `UserError` if there is no
    template, or it refuses a conversation.
    """
    settings = settings or PromptSettings()
    encoder = TextEncoder(tokenizer, settings.add_bos)
    if isinstance(prompts[0], str):
        return encoder.prompts([encoder.plain(str(p)) for p in prompts], is_chat=False)
    render = chat_renderer(
        tokenizer, encoder.plain, settings.chat_template_kwargs, settings.template_date
    )
    if render is None:
        raise UserError(
            "the model's tokenizer has no chat template; take --prompt alma, or a model with one."
        )
    try:
        texts = [render(list(p), True) for p in prompts if not isinstance(p, str)]
    except TemplateError as error:
        raise UserError(
            f"the tokenizer's chat template refuses the prompt ({one_line(error)}); take "
            "--prompt chat, which has no system message, or --prompt alma."
        ) from None
    return encoder.prompts(texts, is_chat=True)
