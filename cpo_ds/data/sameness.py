"""When two texts are the same for a reader, when a text shows nothing, and when scores are equal.

Texts are only compared in these forms; what is written stays as it was.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import regex

# Characters of no width: joiners, marks of direction, variation selectors, the soft hyphen, ...
_UNSEEN = r"\p{Default_Ignorable_Code_Point}"
_SPACE = r"\s\p{Cc}\u2800"  # white space, control characters, and the blank of Braille
_WITHOUT_WIDTH = regex.compile(f"[{_UNSEEN}]+")
_AROUND = regex.compile(rf"\A[{_SPACE}]+|[{_SPACE}]+\Z")
_VISIBLE = regex.compile(f"[^{_SPACE}{_UNSEEN}]")

Name = TypeVar("Name", bound=Hashable)

# Two means of the same scores may differ by rounding, since sums depend on their order: by a few
# units in 1e16, or of numbers that cancel each other by some 1e-14. Scores have 7 digits or more.
RELATIVE_TOLERANCE = 1e-9
ABSOLUTE_TOLERANCE = 1e-12


def as_seen(text: str) -> str:
    """The text in a form that is equal for texts that look the same.

    That is Unicode's NFC without characters of no width, soft hyphens among them, and without the
    spaces around it.
    """
    if text.isascii():
        return _AROUND.sub("", text)
    return _AROUND.sub("", unicodedata.normalize("NFC", _WITHOUT_WIDTH.sub("", text)))


def same_text(first: str, second: str) -> bool:
    """Whether two texts look the same, as `as_seen` gives them."""
    return first == second or as_seen(first) == as_seen(second)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or all of its characters are invisible."""
    return _VISIBLE.search(text) is None


def same_score(first: float, second: float) -> bool:
    """Whether two scores, or two means of scores, differ by no more than rounding."""
    return math.isclose(first, second, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)


def distinct(names: Iterable[Name], texts: Mapping[Name, str]) -> list[Name]:
    """The names without those whose text is the same as that of a name before."""
    first: dict[str, Name] = {}
    for name in names:
        first.setdefault(as_seen(texts[name]), name)
    return list(first.values())


def best_and_worst(scores: Mapping[str, float]) -> tuple[str, str] | None:
    """The names of the highest and the lowest score; None if these are equal, or if there is none.

    Of several names with the same score the first counts.
    """
    if not scores:
        return None
    highest, lowest = max(scores.values()), min(scores.values())
    best = next(name for name, score in scores.items() if same_score(score, highest))
    worst = next(name for name, score in scores.items() if same_score(score, lowest))
    return None if same_score(scores[best], scores[worst]) else (best, worst)
