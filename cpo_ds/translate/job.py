"""Translations by one system: kept as they are made, then cleaned and added to the rows."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import CandidateRow, left_out, write_rows
from cpo_ds.data.prompts import parse_direction
from cpo_ds.errors import UserError
from cpo_ds.storage.results import ResultFiles, cache_of
from cpo_ds.translate.cleaning import FIRST_LINE, clean
from cpo_ds.translate.languages import all_languages
from cpo_ds.translate.lines import Sources, read_sources
from cpo_ds.translate.prompting import Prompt, last_request


@dataclass(frozen=True)
class Translation:
    """A model's answer before cleaning. `is_whole`: it ended by itself, not at a token limit."""

    text: str
    is_whole: bool
    prompt_tokens: int
    completion_tokens: int


class KeptTranslations:
    """Translations by key that survive a kill, in a folder beside the output."""

    def __init__(self, output: Path, rank: int = 0) -> None:
        self.folder = cache_of(output)
        self._files = ResultFiles(self.folder, "translations", rank)

    def read(self) -> dict[str, Translation]:
        """The translations of all ranks."""
        return {key: Translation(**values) for key, values in self._files.read().items()}

    def add(self, translations: Mapping[str, Translation]) -> None:
        """Keeps more translations, all or none of them. Raises `UserError` if that fails."""
        self._files.add({key: asdict(value) for key, value in translations.items()})


@dataclass(frozen=True)
class Job:
    """The rows that one system translates.

    Rows without a key are not translated; `why_not` is the reason.
    """

    sources: Sources
    name: str
    prompts: tuple[Prompt, ...]
    keys: tuple[str | None, ...]  # of each row's translation among the kept ones
    why_not: str = ""

    def write(self, output: Path, kept: Mapping[str, Translation]) -> list[str]:
        """Cleans the translations and writes the rows with them; returns lines to print."""
        counts: Counter[str] = Counter()
        answers = [kept.get(key, "no answer") if key else self.why_not for key in self.keys]
        texts = [
            self._text(row, prompt, answer, counts)
            for row, prompt, answer in zip(self.sources.rows, self.prompts, answers, strict=True)
        ]
        write_rows(output, with_candidates(self.sources.rows, {self.name: texts}))
        return [summary(output, self.name, texts), *count_lines(counts)]

    def _text(
        self, row: CandidateRow, prompt: Prompt, answer: Translation | str, counts: Counter[str]
    ) -> str | None:
        """The cleaned translation of a row, or None without one; counts the steps in `counts`."""
        if isinstance(answer, str):
            counts[f"no translation, {answer}"] += 1
            return None
        target = self.sources.languages[parse_direction(row.language_pair)[1]]
        text, done = clean(answer.text, target, last_request(prompt))
        counts.update(f"cleaned, {step}" for step in done)
        counts["ended by the limit of tokens"] += not answer.is_whole and FIRST_LINE not in done
        counts["no translation, empty"] += not text
        return text or None


def with_candidates(
    rows: Sequence[CandidateRow], texts: Mapping[str, Sequence[str | None]]
) -> list[dict[str, Any]]:
    """The rows' values with each system's text as a candidate; None adds no candidate."""
    added = [
        {name: text for name, column in texts.items() if (text := column[index]) is not None}
        for index in range(len(rows))
    ]
    return [
        row.values | {"candidates": row.candidates | new}
        for row, new in zip(rows, added, strict=True)
    ]


def summary(output: Path, name: str, texts: Sequence[str | None]) -> str:
    """A line to print on one system."""
    translated = sum(text is not None for text in texts)
    return f"{output}: {len(texts)} rows, {translated} with a translation by {name}"


def count_lines(counts: Counter[str]) -> list[str]:
    """Lines to print, largest counts first."""
    return [f"  {label}: {count}" for label, count in counts.most_common() if count]


def source_lines(sources: Sources) -> list[str]:
    """Lines to print on the rows that were read."""
    return [f"read {len(sources.rows)} rows of {sources.path}", *left_out(sources.skipped)]


def read_untranslated(arguments: argparse.Namespace, name: str) -> Sources:
    """Reads sources and prints counts. Raises `UserError` if a row has a candidate of `name`."""
    sources = read_sources(arguments.input, arguments.language_pair, arguments.references)
    sources = replace(sources, languages=all_languages(arguments))
    check_untranslated(sources, [name])
    print("\n".join(source_lines(sources)), flush=True)
    return sources


def check_untranslated(sources: Sources, names: Sequence[str]) -> None:
    """Raises `UserError` if a row has a candidate of one of these names."""
    for row in sources.rows:
        for name in names:
            if name in row.candidates:
                raise UserError(
                    f"{row.where}: there is a candidate of {name} already; give another --name."
                )
