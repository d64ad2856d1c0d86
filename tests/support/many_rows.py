"""Scored rows in any number, by arithmetic alone: the same in every version of Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DIRECTIONS = ("en-de", "de-en", "cs-en", "de-fr", "en-xx")
SYSTEMS = ("gpt-4", "alma-13b", "b", "c")


def many_rows(count: int, words: int = 6) -> Iterator[dict[str, Any]]:
    """Rows with ties, gaps, equal texts, duplicates, people's choices and different records."""
    for n in range(count):
        texts = {name: _text(n // 2 * 7 + at, words) for at, name in enumerate(SYSTEMS)}
        if n % 11 == 0:
            texts["c"] = texts["b"]
        if n % 13 == 0:
            texts["b"] = " "
        names = [*texts, "reference"]
        row = {
            "language_pair": DIRECTIONS[n // 2 % len(DIRECTIONS)],
            "source": _text(n // 2 * 5 + 3, words),
            "reference": None if n % 6 == 5 else _text(n // 2 * 3 + 1, words),
            "candidates": texts,
            "scores": {
                "kiwi": {name: n // 2 * (at + 3) % 17 / 16 for at, name in enumerate(names)},
                "xcomet": {name: n // 2 * (at + 5) % 23 / 16 for at, name in enumerate(names)},
                "chrf": {name: n * (at + 7) % 101 for at, name in enumerate(names)},
            },
            "scorers": {"xcomet": {"model": "x", "uses_reference": n % 7 == 0}},
        }
        if n % 9 == 4:
            del row["scores"]["xcomet"]
        if n % 10 == 8:
            row["preference"] = {"chosen": "alma-13b", "rejected": "gpt-4"}
        yield row


def _text(seed: int, words: int) -> str:
    """A text of about so many words, of six letters each."""
    numbers = (seed * 7919 + word * 104729 for word in range(words + seed % 3))
    return " ".join(
        "".join(chr(97 + number // 26**at % 26) for at in range(6)) for number in numbers
    )


def write_many(path: Path, count: int, words: int = 6) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in many_rows(count, words))
    return path
