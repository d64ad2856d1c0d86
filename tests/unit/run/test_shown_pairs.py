"""A pair as text and as tokens: which of them are scored, and what they spell."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import tiny_tokenizer

from cpo_ds.run.shown_pairs import legend, pair_lines, two_of
from cpo_ds.schema import TokenizedPair


def pair_of(
    tokenizer: Any, prompt: str, chosen: str, rejected: str, *, prefix: int | None = None
) -> TokenizedPair:
    """A pair whose shared prefix is the prompt, or only its first tokens."""
    parts = [tokenizer.encode(text, add_special_tokens=False) for text in (chosen, rejected)]
    head = tokenizer.encode(prompt, add_special_tokens=False)
    shared = len(head) if prefix is None else prefix
    rest = head[shared:]
    tokens = [*head[:shared], *rest, *parts[0], *rest, *parts[1]]
    return TokenizedPair(
        np.array(tokens, np.int32), shared, tuple(len(rest) + len(part) for part in parts),
        (len(head), len(head)),
        "en-de", "pairs.jsonl:1",
    )  # fmt: skip


def test_without_colors_marks_say_what_is_scored() -> None:
    tokenizer = tiny_tokenizer()
    pair = pair_of(tokenizer, "Q:\n", "ja", "no 你\x1b")
    lines = pair_lines(pair, tokenizer, colored=False)
    assert [line.split()[0] for line in lines] == [
        "text", "prompt", "chosen", "rejected", "tokens", "prompt", "chosen", "rejected"
    ]  # fmt: skip
    assert lines[1] == "    prompt    Q:⏎" and lines[3] == r"    rejected  no 你\x1b"
    assert lines[5] == "    prompt    Q|:|⏎|"
    assert lines[6] == "    chosen    [j][a]  (2 scored)"
    assert lines[7] == r"    rejected  [n][o ][你×3][\x1b]  (6 scored)"
    assert "\033" not in "".join(lines) + legend(colored=False)


def test_scores_that_the_objective_reads_stand_beside_their_tokens() -> None:
    tokenizer = tiny_tokenizer()
    pair = replace(pair_of(tokenizer, "Q:\n", "ja", "no"), scores=(0.75, -1.0))
    lines = pair_lines(pair, tokenizer, colored=False)
    assert lines[6] == "    chosen    [j][a]  (2 scored; score in the data 0.75)"
    assert lines[7] == "    rejected  [n][o]  (2 scored; score in the data -1)"


def test_prompt_tokens_that_a_branch_repeats_are_masked() -> None:
    tokenizer = tiny_tokenizer()
    pair = pair_of(tokenizer, "Q:\n", "ja", "no", prefix=1)
    lines = pair_lines(pair, tokenizer, colored=False)
    assert lines[1] == "    prompt    Q:⏎" and lines[5] == "    prompt    Q|"
    assert lines[6] == "    chosen    (:)(⏎)[j][a]  (2 scored)"
    assert lines[7] == "    rejected  (:)(⏎)[n][o]  (2 scored)"


def test_a_common_beginning_counts_for_both() -> None:
    """It is in the prefix, behind the first scored token."""
    tokens = np.array(tiny_tokenizer().encode("Q:abcd", add_special_tokens=False), np.int32)
    pair = TokenizedPair(tokens, 4, (1, 1), (2, 2), "", "x:1")  # Q:ab · c · d
    lines = pair_lines(pair, tiny_tokenizer(), colored=False)
    assert lines[5:] == [
        "    prompt    Q|:|",
        "    chosen    [a][b][c]  (3 scored)",
        "    rejected  [a][b][d]  (3 scored)",
    ]


def test_with_colors() -> None:
    tokenizer = tiny_tokenizer()
    lines = pair_lines(pair_of(tokenizer, "Q:\n", "ja", "no", prefix=1), tokenizer, colored=True)
    bar = "\033[2m|\033[0m"
    assert lines[5].endswith("\033[90mQ\033[0m")
    assert lines[6].endswith(
        f"\033[2m⏎\033[0m{bar}\033[32mj\033[0m{bar}\033[32ma\033[0m  (2 scored)"
    )
    assert lines[7].count("\033[31m") == 2
    assert re.findall(r"\[(\d+)m\w", legend(colored=True)) == ["90", "32", "31", "2"]


@pytest.mark.parametrize(
    ("directions", "shown"),
    [(["a"], [0]), (["a", "a"], [0, 1]), (["a", "a", "b", "b"], [0, 2]), ([""] * 9, [0, 1])],
)
def test_two_pairs_are_shown_of_two_directions_if_there_are(
    directions: list[str], shown: list[int]
) -> None:
    pairs = [
        TokenizedPair(np.zeros(3, np.int32), 1, (1, 1), (1, 1), direction, "x:1")
        for direction in directions
    ]
    assert two_of(pairs) == shown
