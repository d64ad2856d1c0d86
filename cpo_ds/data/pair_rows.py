"""The format `pairs`: rows with prompt, chosen and rejected as strings, or as conversations."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, NamedTuple

from cpo_ds.data.pair_scores import ABOVE, not_above, scores_of
from cpo_ds.data.prompts import (
    Message,
    RenderChat,
    render_completions,
    split_conversations,
)
from cpo_ds.data.sameness import distinct, is_blank, same_text
from cpo_ds.data.sources import RawRow

NO_REJECTED, SAME_TEXTS = "no rejected completion", "chosen equals rejected"


class Texts(NamedTuple):
    """One preference as text; in the format `pairs`, `source` is the whole prompt.

    `scores` are those of chosen, then of each rejected completion; None if they were not read.
    """

    source: str
    chosen: str
    rejected: tuple[str, ...]
    scores: tuple[float, ...] | None = None

    def only(self, numbers: Sequence[int]) -> Texts:
        """The same with these of the rejected completions alone."""
        scores = self.scores
        if scores is not None:
            scores = (scores[0], *(scores[1 + number] for number in numbers))
        rejected = tuple(self.rejected[number] for number in numbers)
        return self._replace(rejected=rejected, scores=scores)


def pick_pair(
    raw: RawRow, render_chat: RenderChat | None, *, with_scores: bool = False
) -> Texts | str:
    """The texts of a row, or the reason why it has no pair. Raises `UserError` for a bad row."""
    is_conversation = isinstance(raw.get("chosen"), list)
    rejected = rejected_by_field(raw)
    if not rejected:
        return NO_REJECTED
    if any(is_conversation != isinstance(value, list) for value in rejected.values()):
        raise raw.error(
            "rejected", "must be of the same kind as chosen: both strings, or both messages"
        )
    scores = None
    if with_scores:
        is_many = "rejected" not in rejected
        scores = scores_of(raw, len(rejected), is_many=is_many)
    if not is_conversation:
        texts = tuple(raw.checked_text(text, field) for field, text in rejected.items())
        for field, text in zip(rejected, texts, strict=True):
            _refuse_written_list(raw, field, text)
        return Texts(raw.text("prompt"), raw.text("chosen"), texts, scores)
    if render_chat is None:
        problem = "is a conversation, but the tokenizer has no chat template; use plain strings"
        raise raw.error("chosen", problem)
    if raw.values.get("chat_template_kwargs"):
        raise raw.error(
            "chat_template_kwargs", "is not supported; remove it, or set data.chat_template_kwargs"
        )
    opening, *completions = conversations(raw)
    rendered = render_completions(opening, completions, render_chat)
    for field, text in zip(("prompt", "chosen", *rejected), rendered, strict=True):
        if is_blank(text):
            raise raw.error(field, "is empty after the chat template has rendered it")
    return Texts(rendered[0], rendered[1], rendered[2:], scores)


def comparisons(texts: Texts) -> tuple[Texts, int, int] | str:
    """The texts with rejected completions that can be compared with the chosen one.

    With them come the number of those that are there already, as the chosen text or before, and the
    number of those that score above the chosen one. If none is left, returns the reason.
    """
    different = _different(texts.chosen, texts.rejected)
    if not different:
        return SAME_TEXTS
    lost = len(texts.rejected) - len(different)
    texts = texts.only(different) if lost else texts
    if texts.scores is None:
        return texts, lost, 0
    worse = not_above(texts.scores)
    if not worse:
        return ABOVE
    return texts.only(worse), lost, len(texts.rejected) - len(worse)


def _different(chosen: str, rejected: Sequence[str]) -> list[int]:
    """The numbers of rejected texts that look different from the chosen one and those before."""
    if len(rejected) == 1:  # most rows
        return [] if same_text(chosen, rejected[0]) else [0]
    texts = {-1: chosen} | dict(enumerate(rejected))
    return [number for number in distinct(texts, texts) if number >= 0]


def _refuse_written_list(raw: RawRow, field: str, text: str) -> None:
    """Raises `UserError` for a list of texts that was written into one text, as csv files have it.

    A chosen text that begins with a bracket too may be meant so.
    """
    if not text.lstrip().startswith("[") or raw.text("chosen").lstrip().startswith("["):
        return
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    if values and isinstance(values, list) and all(isinstance(value, str) for value in values):
        raise raw.error(
            field,
            "is a list written as text, and would be trained on with its brackets; csv and tsv "
            "have no lists: write .jsonl or .parquet, or a row for each text",
        )


def are_many(chosen: Any, rejected: Any) -> bool:
    """Whether `rejected` is a list of completions, rather than one that may be a list of messages.

    It may be if `chosen` is one.
    """
    if not isinstance(rejected, list):
        return False
    return not isinstance(chosen, list) or all(isinstance(one, list) for one in rejected)


def rejected_by_field(raw: RawRow) -> dict[str, Any]:
    """The rejected completions by their fields: one, or each of a list of them."""
    value = raw.get("rejected")
    if not are_many(raw.get("chosen"), value):
        return {"rejected": value}
    return {f"rejected[{number}]": one for number, one in enumerate(value)}


def rewrites_prompt(raw: RawRow, prompt: str, render_chat: RenderChat) -> bool:
    """Whether a template writes a conversation's prompt otherwise for a model to continue.

    `prompt` is the one of `render_completions`. Templates that open a thought in the prompt alone
    do so.
    """
    return prompt != render_chat(conversations(raw)[0], True)


def conversations(raw: RawRow) -> tuple[list[Message], ...]:
    """The prompt, and the chosen and rejected completions, as messages."""
    by_field = {"chosen": raw.get("chosen")} | rejected_by_field(raw)
    completions = [_messages(raw, messages, field) for field, messages in by_field.items()]
    if isinstance(raw.values.get("prompt"), list):
        prompt = _messages(raw, raw.get("prompt"), "prompt")
    else:  # a prompt that is a string, if any, is also the beginning of all conversations
        prompt, *completions = split_conversations(*completions)
    if not prompt:
        raise raw.error("prompt", "is missing, and chosen and rejected have no common beginning")
    if prompt[-1]["role"] not in ("user", "tool"):
        problem = f"ends with a turn of {prompt[-1]['role']!r}; it must end with the user's"
        raise raw.error("prompt", problem)
    return prompt, *completions


def _messages(raw: RawRow, messages: Any, column: str) -> list[Message]:
    """The messages of a column, checked, without their null fields."""
    if not messages:
        raise raw.error(column, "is empty; it needs at least one message")
    for number, message in enumerate(messages):
        field = f"{column}[{number}]"
        if not isinstance(message, dict):
            raise raw.error(field, "is not a message with role and content")
        role = raw.checked_text(message.get("role"), f"{field}.role")
        if role != "system" or message.get("content") != "":
            raw.checked_text(message.get("content"), f"{field}.content")
    return [{key: text for key, text in m.items() if text is not None} for m in messages]
