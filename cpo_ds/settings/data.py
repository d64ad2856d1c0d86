"""The `data` section: preference pairs, and how their texts become tokens."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cpo_ds.settings.section import Section

AddBos = Literal["auto", "always", "never"]


class DataConfig(Section):
    """The preference pairs: their source, format and limits, and the way from texts to tokens."""

    format: Literal["pairs", "alma-r", "x-alma", "triplets", "sample"] = Field(
        description="format of the rows (see docs/data.md)"
    )
    path: str | None = Field(
        None, description="csv, tsv, json, jsonl or parquet file, a folder, or a dataset name"
    )
    split: str = Field("train", description="split to read, if path is a dataset name")
    directions: list[str] | None = Field(
        None, description="translation directions to keep, like [en-de, de-en]; none: all"
    )
    languages: dict[str, str] = Field(
        {}, description="names of languages for prompts, added to the 50 known ones: {bn: Bengali}"
    )
    scorer: str = Field(
        "kiwi_xcomet", description="score that picks chosen and rejected text (alma-r, triplets)"
    )
    selected_by: list[str] | None = Field(
        None,
        description="metrics that selected the pairs, besides those that the pairs name, for "
        "evaluations to beware of: [kiwi, xcomet]",
    )
    prompt_style: Literal["alma", "chat"] = Field(
        "alma", description="the ALMA prompt as plain text, or as a user turn of the chat template"
    )
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
    max_prompt_tokens: int = Field(256, gt=0, description="pairs with a longer prompt are dropped")
    max_tokens: int = Field(
        512, gt=1, description="pairs with a longer prompt + completion are dropped and counted"
    )
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0, description="share of the pairs to hold out")
    eval_path: str | None = Field(None, description="path of held-out pairs in the same format")
    cache: str | None = Field(
        None, description="folder for tokenized pairs; none: output_dir/pairs"
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

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if (self.path is None) != (self.format == "sample"):
            raise ValueError("data.path is required, except by data.format: sample, which has none")
        if self.scorer != "kiwi_xcomet" and self.format not in ("alma-r", "triplets"):
            raise ValueError(
                f"data.scorer has no effect with data.format: {self.format}; remove it"
            )
        if self.prompt_style == "chat" and self.format == "pairs":
            raise ValueError("data.prompt_style has no effect with data.format: pairs; remove it")
        if self.special_tokens and self.format != "pairs":
            raise ValueError(
                f"data.special_tokens has no effect with data.format: {self.format}; remove it"
            )
        if self.chat_template_kwargs and self.prompt_style == "alma" and self.format != "pairs":
            raise ValueError(
                "data.chat_template_kwargs has no effect with data.prompt_style: alma; remove it"
            )
        if self.eval_fraction and self.eval_path:
            raise ValueError("set data.eval_fraction or data.eval_path, not both")
        return self
