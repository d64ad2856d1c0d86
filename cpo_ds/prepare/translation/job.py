"""Translations by one system: kept as they come, cleaned and added to the rows at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import CandidateRow, left_out, write_rows
from cpo_ds.data.prompts import LANGUAGES, parse_direction
from cpo_ds.errors import UserError
from cpo_ds.prepare.translation.cleaning import FIRST_LINE, clean
from cpo_ds.prepare.translation.lines import Sources, read_sources
from cpo_ds.prepare.translation.prompting import Prompt, last_request
from cpo_ds.storage.results import Parts, cache_of

_PARTS = "translations"


@dataclass(frozen=True)
class Translation:
    """What a model wrote, as it came. `is_whole`: it ended by itself, not at a limit of tokens."""

    text: str
    is_whole: bool
    prompt_tokens: int
    completion_tokens: int


class Kept:
    """Translations that survive a kill, by key, in a folder beside the output."""

    def __init__(self, output: Path, rank: int = 0) -> None:
        self.folder = cache_of(output)
        self._parts = Parts(self.folder, _PARTS, rank)

    def read(self) -> dict[str, Translation]:
        """All there are, of all ranks."""
        return {key: Translation(**values) for key, values in self._parts.read().items()}

    def add(self, translations: Mapping[str, Translation]) -> None:
        """Keeps some more, all or none of them. Raises `UserError` where it cannot."""
        self._parts.add({key: asdict(value) for key, value in translations.items()})


@dataclass(frozen=True)
class Job:
    """All that one system is to translate; a row without a key is not, and `why_not` says why."""

    sources: Sources
    name: str
    prompts: tuple[Prompt, ...]
    keys: tuple[str | None, ...]
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
        if isinstance(answer, str):
            counts[f"no translation, {answer}"] += 1
            return None
        target = LANGUAGES[parse_direction(row.language_pair)[1]]
        text, done = clean(answer.text, target, last_request(prompt))
        counts.update(f"cleaned, {what}" for what in done)
        counts["ended by the limit of tokens"] += not answer.is_whole and FIRST_LINE not in done
        counts["no translation, empty"] += not text
        return text or None


def with_candidates(
    rows: Sequence[CandidateRow], texts: Mapping[str, Sequence[str | None]]
) -> list[dict[str, Any]]:
    """The rows' values with candidates added by system; a row gets none where the text is None."""
    added = [
        {name: text for name, column in texts.items() if (text := column[index]) is not None}
        for index in range(len(rows))
    ]
    return [
        row.values | {"candidates": row.candidates | new}
        for row, new in zip(rows, added, strict=True)
    ]


def summary(output: Path, name: str, texts: Sequence[str | None]) -> str:
    """A line on one system."""
    there = sum(text is not None for text in texts)
    return f"{output}: {len(texts)} rows, {there} with a translation by {name}"


def count_lines(counts: Counter[str]) -> list[str]:
    """Lines to print, largest counts first."""
    return [f"  {what}: {count}" for what, count in counts.most_common() if count]


def source_lines(sources: Sources) -> list[str]:
    """Lines to print on what was read."""
    return [f"read {len(sources.rows)} rows of {sources.path}", *left_out(sources.skipped)]


def read_untranslated(arguments: Any, name: str) -> Sources:
    """The sources, said to the user. Raises `UserError` where some have that candidate already."""
    sources = read_sources(arguments.input, arguments.language_pair, arguments.references)
    for row in sources.rows:
        if name in row.candidates:
            raise UserError(
                f"{row.where}: there is a candidate of {name} already; give another --name."
            )
    print("\n".join(source_lines(sources)), flush=True)
    return sources
