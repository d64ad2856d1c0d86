"""A unit of a translation memory: a source, its translation, and drafts of that translation."""

from __future__ import annotations

from dataclasses import dataclass, field

from cpo_ds.data.prompts import base_code

EMPTY_SOURCE, EMPTY_TARGET = "empty source", "empty target"
NO_LANGUAGE = "a text without a language"
DRAFT = "draft"  # the name of a machine's draft that has none


@dataclass(frozen=True)
class Unit:
    """Texts of one segment, or the problem for which it has none."""

    where: str  # like "memory.tmx, line 12"
    language_pair: str = ""
    source: str = ""
    target: str = ""
    drafts: dict[str, str] = field(default_factory=dict)  # by the names of what wrote them
    problem: str | None = None  # the reason to drop it, or None
    note: str | None = None  # what is to be said of it although it is kept


def fitness(code: str, wanted: str) -> int:
    """How well a code of a file fits the wanted one: 2 if it is the same, 1 if it is a variant.

    A code with a region, like `en-US`, is a variant of `en`. Upper case means nothing.
    """
    found, asked = (text.strip().lower().replace("_", "-") for text in (code, wanted))
    if found == asked:
        return 2
    return int(base_code(found) == asked)


def numbered(texts: list[str]) -> dict[str, str]:
    """Names for drafts that have none: `draft`, `draft-2`, ..."""
    return {
        DRAFT if number == 1 else f"{DRAFT}-{number}": text
        for number, text in enumerate(texts, start=1)
    }
