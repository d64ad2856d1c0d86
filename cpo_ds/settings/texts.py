"""Settings of the way from texts to tokens, a part of the `data` section."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, field_validator

from cpo_ds.settings.section import Section

AddBos = Literal["auto", "always", "never"]


class TextSettings(Section):
    """Special tokens and the chat template."""

    add_bos: AddBos = Field(
        "auto",
        description="the beginning-of-sequence token before a prompt: auto, if the tokenizer "
        "itself puts it there (a chat template brings its own); always, as TRL does; never",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {},
        description="arguments of the chat template, like {enable_thinking: false}; chat_template: "
        "NAME takes one of several",
    )
    template_date: str | None = Field(
        None,
        description="day that a chat template prints, like 2026-01-31; none: that of the run's "
        "first start",
    )
    special_tokens: Literal["plain", "parsed"] | None = Field(
        None,
        description="text of the format pairs that spells a special token, like `</s>`: plain "
        "characters, or parsed as that token; none: plain, unless most texts look as if a chat "
        "template had rendered them",
    )

    @field_validator("template_date", mode="before")
    @classmethod
    def _check_date(cls, value: object) -> str | None:
        if value is None:
            return None
        try:
            return date.fromisoformat(str(value)).isoformat()  # YAML reads a day as a date
        except ValueError:
            raise ValueError(f"must be a day like 2026-01-31, but is {value!r}") from None
