"""Rows of translation memories in TMX, the exchange format of translators' tools."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from cpo_ds.data.safe_xml import chunks, safe_parser
from cpo_ds.errors import UserError

_CODES = {"bpt", "ept", "it", "ph", "ut"}  # elements that hold codes of formatting, not text


def tmx_rows(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the unit's number and a row for each of its translations, None for a unit without one.

    A row is `{"language_pair", "source", "reference"}`: a memory has no worse translations. Raises
    `UserError` for a file that is no whole TMX, and for one that declares XML entities.
    """
    memory = _Memory(label)
    try:
        for chunk, is_last in chunks(path, label):
            memory.parse(chunk, is_last=is_last)
            yield from memory.take()
    except expat.ExpatError as error:
        raise UserError(f"{label} is not a whole TMX file ({error}); export it again.") from None


class _Memory:
    """Collects rows while expat reads the file."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._rows: list[tuple[int, dict[str, Any] | None]] = []
        self._source_language = ""
        self._units = 0
        self._texts: list[tuple[str, str]] = []  # language and text of each part of a unit
        self._language = ""
        self._segment: list[str] | None = None  # the text so far, inside of <seg>
        self._codes = 0  # elements of formatting around the text
        self._depth = 0
        self._parser = safe_parser(label, self._start, self._end, self._add)

    def parse(self, chunk: bytes, *, is_last: bool) -> None:
        """Reads on. Raises `UserError`, and expat's error for malformed XML."""
        self._parser.Parse(chunk, is_last)

    def take(self) -> list[tuple[int, dict[str, Any] | None]]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if self._depth == 0 and name != "tmx":
            raise UserError(f"{self._label} is XML but not TMX (its root is <{name}>); export TMX.")
        self._depth += 1
        if name == "header":
            self._source_language = attributes.get("srclang", "")
        elif name == "tu":
            self._units += 1
            self._texts = []
        elif name == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang", "")
        elif name == "seg":
            self._segment, self._codes = [], 0
        elif name in _CODES:
            self._codes += 1

    def _add(self, text: str) -> None:
        if self._segment is not None and not self._codes:
            self._segment.append(text)

    def _end(self, name: str) -> None:
        self._depth -= 1
        if name == "seg" and self._segment is not None:
            self._texts.append((self._language, "".join(self._segment).strip()))
            self._segment = None
        elif name in _CODES:
            self._codes -= 1
        elif name == "tu":
            rows = _unit_rows(self._texts, self._source_language)
            self._rows += [(self._units, row) for row in rows or [None]]


def _unit_rows(texts: list[tuple[str, str]], source_language: str) -> list[dict[str, Any] | None]:
    """A row for each translation of a unit's source: its text in that language, else its first."""
    names = [language.lower() for language, _ in texts]
    wanted = source_language.lower()
    start = next((i for i, name in enumerate(names) if name == wanted), None)
    if start is None:  # srclang may leave out the region
        start = next((i for i, name in enumerate(names) if name.split("-")[0] == wanted), 0)
    return [
        {
            "language_pair": f"{_code(texts[start][0])}-{_code(language)}",
            "source": texts[start][1],
            "reference": text,
        }
        for index, (language, text) in enumerate(texts)
        if index != start
    ]


def _code(language: str) -> str:
    """`EN-us` -> `en-US`, as directions are written."""
    first, *others = re.split("[-_]", language)
    return "-".join([first.lower(), *(p.upper() if len(p) == 2 else p.title() for p in others)])
