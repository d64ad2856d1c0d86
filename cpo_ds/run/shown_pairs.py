"""Shows a tokenized pair as text and as tokens, and which of its tokens are scored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cpo_ds.ranks.console import escaped
from cpo_ds.schema import TokenizedPair

_GREY, _GREEN, _RED, _DIM = "90", "32", "31", "2"  # ANSI
_MOST_PARTS = 6  # tokens that may make one character together
_UNKNOWN = "\ufffd"  # a decoder's sign for a part of a character

_MASKED = "masked: a part of the prompt that a branch repeats"
_PARTS = "\u00d7N: N tokens that make one character together"


class _Side(NamedTuple):
    """One text of a pair: its whole sequence and its first scored token."""

    name: str
    color: str
    tokens: np.ndarray
    start: int


def legend(*, colored: bool) -> str:
    """What colors and marks of `pair_lines` mean."""
    if not colored:
        return f"prompt|tokens, [scored], ({_MASKED}); {_PARTS}"
    words = {_GREY: "prompt", _GREEN: "scored, chosen", _RED: "scored, rejected", _DIM: _MASKED}
    shown = ", ".join(f"\033[{color}m{word}\033[0m" for color, word in words.items())
    return f"{shown}; {_PARTS}"


def two_of(pairs: Sequence[TokenizedPair]) -> list[int]:
    """Indices of two pairs to show: the first, and the next one of another direction, if any."""
    first = pairs[0].direction
    others = (index for index in range(len(pairs)) if pairs[index].direction != first)
    return [0, next(others, 1)][: len(pairs)]


def pair_lines(pair: TokenizedPair, tokenizer: Any, *, colored: bool) -> list[str]:
    """The pair as text and as tokens, a line for each part; colors are in ANSI's codes."""
    prefix, *branches = np.split(pair.tokens, np.cumsum(pair.segments)[:-1])
    sides = [
        _Side(
            "rejected" if number else "chosen",
            _RED if number else _GREEN,
            np.concatenate([prefix, branch]),
            start,
        )
        for number, (branch, start) in enumerate(zip(branches, pair.starts, strict=True))
    ]
    shared = min(pair.num_prefix, *(side.start for side in sides))

    # The texts that the tokens spell.
    prompt = tokenizer.decode(sides[0].tokens[: sides[0].start])
    lines = ["  text", f"    {'prompt':<9} {_shown(prompt)}"]
    lines += [
        f"    {side.name:<9} {_shown(tokenizer.decode(side.tokens[side.start :]))}"
        for side in sides
    ]

    # The prompt's tokens once, then each side's own.
    lines.append("  tokens")
    pieces = [(text, _GREY, "{}|") for text in _pieces(prefix[:shared], tokenizer)]
    lines.append(f"    {'prompt':<9} {_joined(pieces, colored)}")
    scores = [f"; score in the data {score:g}" for score in pair.scores or ()]
    for side, score in zip(sides, scores or [""] * len(sides), strict=True):
        masked = _pieces(side.tokens[shared : side.start], tokenizer)
        scored = _pieces(side.tokens[max(shared, side.start) :], tokenizer)
        pieces = [(text, _DIM, "({})") for text in masked]
        pieces += [(text, side.color, "[{}]") for text in scored]
        count = len(side.tokens) - side.start
        lines.append(f"    {side.name:<9} {_joined(pieces, colored)}  ({count} scored{score})")
    return lines


def _joined(pieces: Iterable[tuple[str, str, str]], colored: bool) -> str:
    """Tokens with marks between them; each has a text, a color and a mark for a console without."""
    if colored:
        return "\033[2m|\033[0m".join(f"\033[{c}m{text}\033[0m" for text, c, _ in pieces)
    return "".join(mark.format(text) for text, _, mark in pieces)


def _pieces(tokens: np.ndarray, tokenizer: Any) -> list[str]:
    """The text of each token; tokens that make one character only together are one, with `xN`."""
    pieces, ids, begin = [], tokens.tolist(), 0
    while begin < len(ids):
        for count in range(1, _MOST_PARTS + 1):
            text = tokenizer.decode(ids[begin : begin + count])
            if _UNKNOWN not in text:
                break
        else:
            count, text = 1, str(tokenizer.convert_ids_to_tokens(ids[begin]))
        # A decoder drops the space with which SentencePiece begins a word.
        first = str(tokenizer.convert_ids_to_tokens(ids[begin]))
        if first.startswith("\u2581") and not text.startswith(" "):
            text = " " + text
        pieces.append(_shown(text) + (f"\u00d7{count}" if count > 1 else ""))
        begin += count
    return pieces


def _shown(text: str) -> str:
    """A text on one line, with its control characters written out."""
    return re.sub("\r?\n", "\u23ce", escaped(text))
