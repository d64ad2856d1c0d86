"""Turns the answers to a row's prompts into its translations, and counts what was done to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.translate.cleaning import FIRST_LINE, clean, clean_as_alma
from cpo_ds.translate.job import Translation
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.prompting import Prompt, last_request

# Languages that put no space between sentences, by code.
_UNSPACED = {"bo", "ja", "km", "lo", "my", "th", "yue", "zh"}
Choose = Callable[[Sequence[str]], int]  # the best of several translations of a source


@dataclass(frozen=True)
class Asked:
    """What was asked for one row: its prompts, and by sample and prompt the answers' keys.

    A row has several prompts if its source was split.
    """

    prompts: tuple[Prompt, ...]
    keys: tuple[tuple[str, ...], ...]


@dataclass
class Cleaning:
    """Takes translations out of answers by one of two rules, and counts the steps."""

    rule: str  # "alma", or "full" for models that write more than the translation
    counts: Counter[str] = field(default_factory=Counter)

    def text(self, answer: Translation, prompt: Prompt, target_language: str) -> str:
        """The translation in an answer, or ""."""
        if self.rule == "alma":
            text, done = clean_as_alma(answer.text)
        else:
            text, done = clean(answer.text, target_language, last_request(prompt))
        self.counts.update(f"cleaned, {step}" for step in done)
        limit = not answer.is_whole and FIRST_LINE not in done
        self.counts["ended by the limit of tokens"] += limit
        return text


def translations(
    sources: Sources,
    asked: Sequence[Asked],
    known: Mapping[str, Translation],
    cleaning: Cleaning,
) -> list[list[str]]:
    """The translations of each row, one for each sample; "" for an empty one, which is counted."""
    rows = []
    for row, prompts in zip(sources.rows, asked, strict=True):
        target = parse_direction(row.language_pair)[1]
        joint = "" if base_code(target) in _UNSPACED else " "
        language = sources.languages.get(target, target)
        texts = []
        for keys in prompts.keys:
            parts = [
                cleaning.text(known[key], prompt, language)
                for key, prompt in zip(keys, prompts.prompts, strict=True)
            ]
            empty = sum(not part for part in parts)
            cleaning.counts["no translation of a part of a split source"] += empty * (
                len(parts) > 1
            )
            texts.append(joint.join(part for part in parts if part))
            cleaning.counts["empty translations"] += not texts[-1]
        rows.append(texts)
    return rows


def with_translations(
    sources: Sources, texts: Sequence[Sequence[str]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows' values with their translations as candidates of these names, empty ones too.

    Candidates that a row had stay as they were.
    """
    return [
        row.values
        | {"candidates": (row.values.get("candidates") or {}) | dict(zip(names, own, strict=True))}
        for row, own in zip(sources.rows, texts, strict=True)
    ]
