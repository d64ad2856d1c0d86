"""Prompts of rows to translate, and what is done about sources that are too long for them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.errors import UserError
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.long_sources import split_source
from cpo_ds.translate.prompting import Prompt, PromptOf

REFUSE, SPLIT, SERVE = "refuse", "split", "serve"
IdsOf = Callable[[Sequence[Prompt]], list[list[int]]]


@dataclass(frozen=True)
class Limits:
    """The longest prompt, in tokens, and what to do about a longer one."""

    max_prompt_tokens: int
    long: str
    room: int  # what the model's context leaves beside an answer


@dataclass(frozen=True)
class RowPrompts:
    """The prompts of one row and their tokens; several if its source was split."""

    prompts: tuple[Prompt, ...]
    tokens: tuple[tuple[int, ...], ...]


def room_for_prompts(config: Any, max_new_tokens: int) -> int:
    """Tokens that a model's context leaves for a prompt. Raises `UserError` if it leaves none."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    if context <= max_new_tokens:
        raise UserError(
            f"the model's context of {context} tokens is too short for --max-new-tokens "
            f"{max_new_tokens}; lower that, or take another model."
        )
    return context - max_new_tokens


def prompts_of_rows(
    sources: Sources, prompt_of: PromptOf, ids_of: IdsOf, limits: Limits
) -> tuple[list[RowPrompts], int]:
    """The prompts of all rows, and how many were longer than the limit.

    Raises `UserError` for a source that is too long and cannot be served as asked.
    """
    prompts = [prompt_of(row) for row in sources.rows]
    made = [
        RowPrompts((prompt,), (tuple(ids),))
        for prompt, ids in zip(prompts, ids_of(prompts), strict=True)
    ]
    limit = min(limits.max_prompt_tokens, limits.room)
    long = [i for i, row in enumerate(made) if len(row.tokens[0]) > limit]
    if long and limits.long == REFUSE:
        raise _too_long(sources, made, long, limit, f"--long {SPLIT} or --long {SERVE}")
    if limits.long == SERVE:
        too_long = [i for i in long if len(made[i].tokens[0]) > limits.room]
        if too_long:
            raise _too_long(sources, made, too_long, limits.room, f"--long {SPLIT}")
    else:
        for i in long:
            made[i] = _split(sources.rows[i], prompt_of, ids_of, limit)
    return made, len(long)


def _split(row: CandidateRow, prompt_of: PromptOf, ids_of: IdsOf, limit: int) -> RowPrompts:
    """The prompts of a row whose source is split. Raises `UserError` if no part would fit."""

    def fits(text: str) -> bool:
        return len(ids_of([prompt_of(replace(row, source=text))])[0]) <= limit

    parts = split_source(row.source, fits)
    if parts is None:
        raise UserError(
            f"{row.where}: no part of the source fits into a prompt of {limit} tokens; raise "
            "--max-prompt-tokens."
        )
    prompts = [prompt_of(replace(row, source=part)) for part in parts]
    return RowPrompts(tuple(prompts), tuple(tuple(ids) for ids in ids_of(prompts)))


def _too_long(
    sources: Sources, made: list[RowPrompts], long: list[int], limit: int, advice: str
) -> UserError:
    """The error for sources that are too long; it names the first."""
    first = long[0]
    return UserError(
        f"{len(long)} of {len(made)} prompts have more than {limit} tokens, the first that of "
        f"{sources.rows[first].where} with {len(made[first].tokens[0])}; give {advice}, or shorten "
        "the sources."
    )
