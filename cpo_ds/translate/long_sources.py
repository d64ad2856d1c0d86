"""Splits a source that is too long for a prompt, after sentences if it can: a pure function."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

# Where a text may be cut, the best first: after sentences, after clauses, between words. Full-width
# marks end a sentence without a space after them.
_CUTS = (
    re.compile(r"(?<=[.!?\u2026\u0964\u061f])[\"'\u201d\u2019\u00bb)\]]*\s+|(?<=[\u3002\uff01\uff1f])"
               r"(?![\u300d\u300f\u201d\u2019\uff09])\s*|\n+"),
    re.compile(r"(?<=[,;:\u2013\u2014\u060c])\s+|(?<=[\uff0c\uff1b\u3001\uff1a])"),
    re.compile(r"\s+"),
)  # fmt: skip


def split_source(text: str, fits: Callable[[str], bool]) -> list[str] | None:
    """The text in the fewest parts, in order, that each fit; None if not even a character does.

    Nothing but spaces between parts is left out.
    """
    parts = _pack(_pieces(text, _CUTS), fits)
    return None if parts is None else [part.strip() for part in parts if part.strip()]


def _pieces(text: str, cuts: tuple[re.Pattern[str], ...]) -> list[str]:
    """The text cut after each match; the pieces together are the text."""
    if not cuts:
        return list(text)
    ends = [match.end() for match in cuts[0].finditer(text)]
    bounds = sorted({0, *ends, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def _pack(
    pieces: list[str],
    fits: Callable[[str], bool],
    finer: tuple[re.Pattern[str], ...] = _CUTS[1:],
) -> list[str] | None:
    """Joins neighbouring pieces while they fit; cuts a piece that does not fit alone by `finer`."""
    parts: list[str] = []
    for piece in pieces:
        if parts and fits((parts[-1] + piece).strip()):
            parts[-1] += piece
        elif fits(piece.strip()):
            parts.append(piece)
        else:
            if len(piece) <= 1:
                return None
            inner = _pack(_pieces(piece, finer), fits, finer[1:])
            if inner is None:
                return None
            parts += inner
    return parts
