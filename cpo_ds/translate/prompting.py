"""Makes the prompts of ALMA and its peers: texts or conversations that ask for a translation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cpo_ds.data.candidates import CandidateRow, read_candidates
from cpo_ds.data.prompts import (
    LANGUAGES,
    Languages,
    Message,
    alma_prompt,
    check_names,
    few_shot_prompt,
    gpt4_messages,
    parse_direction,
)
from cpo_ds.data.sameness import same_text
from cpo_ds.errors import UserError
from cpo_ds.translate.languages import LANGUAGE

Prompt: TypeAlias = str | list[Message]  # a plain text to continue, or a conversation
PromptOf: TypeAlias = Callable[[CandidateRow], Prompt]

_SHOTS = 5


def prompt_maker(
    style: str, examples: Path | None, shots: int | None, languages: Languages = LANGUAGES
) -> PromptOf:
    """A function that makes the prompt of a row, in the style `alma`, `few-shot`, `chat` or `gpt4`.

    Raises `UserError` if examples are missing, or if the style makes no use of them. The function
    raises it for a row of a language that has no name in `languages`.
    """
    maker = _maker(style, examples, shots, languages)

    def checked(row: CandidateRow) -> Prompt:
        check_names(row.language_pair, languages, row.where, f"{LANGUAGE} {{}}=NAME")
        return maker(row)

    return checked


def _maker(style: str, examples: Path | None, shots: int | None, languages: Languages) -> PromptOf:
    """`prompt_maker` for rows whose languages have names."""
    if style == "few-shot":
        if examples is None:
            raise UserError(
                "--prompt few-shot needs --examples, a file of rows with language_pair, source and "
                "reference."
            )
        return _few_shot(examples, _SHOTS if shots is None else shots, languages)
    if examples or shots is not None:
        raise UserError(f"--examples and --shots belong to --prompt few-shot, not to {style}.")

    def alma(row: CandidateRow) -> str:
        return alma_prompt(row.source, *parse_direction(row.language_pair), languages)

    makers: dict[str, PromptOf] = {
        "alma": alma,
        "chat": lambda row: [{"role": "user", "content": alma(row)}],
        "gpt4": lambda row: gpt4_messages(
            row.source, *parse_direction(row.language_pair), languages
        ),
    }
    return makers[style]


def _few_shot(path: Path, shots: int, languages: Languages) -> PromptOf:
    """Prompts with examples: the first rows of the language pair, but never the row itself."""
    # Examples need a reference.
    rows, _ = read_candidates(str(path))
    known: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        if row.reference:
            known[row.language_pair].append((row.source, row.reference))

    def prompt(row: CandidateRow) -> str:
        others = (p for p in known[row.language_pair] if not same_text(p[0], row.source))
        examples = [pair for pair, _ in zip(others, range(shots), strict=False)]
        if len(examples) < shots:
            raise UserError(
                f"{row.where}: {path} has {len(examples)} examples with a reference of "
                f"{row.language_pair} besides this sentence, and --shots asks for {shots}; add "
                "more, or lower --shots."
            )
        codes = parse_direction(row.language_pair)
        return few_shot_prompt(row.source, *codes, examples, languages)

    return prompt


def last_request(prompt: Prompt) -> str:
    """The text that a model may repeat before it answers."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
