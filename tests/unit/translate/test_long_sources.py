"""Sources that are too long: where they are split, and that nothing gets lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.translate.long_sources import split_source

TEXTS = st.text(st.sampled_from("ab .,!\n。，"), max_size=60)


def without_spaces(text: str) -> str:
    return "".join(text.split())


@given(TEXTS, st.integers(1, 20))
def test_parts_fit_and_hold_every_character_in_order(text: str, limit: int) -> None:
    parts = split_source(text, lambda part: len(part) <= limit)
    assert parts is not None and all(0 < len(part) <= limit for part in parts)
    assert without_spaces("".join(parts)) == without_spaces(text)
    # Two neighbours never fit into one part together, unless they were pieces of a longer one.
    if len(text) <= limit and text.strip():
        assert parts == [text.strip()]


@pytest.mark.parametrize(
    "text, limit, parts",
    [
        ("One. Two! Three?", 9, ["One. Two!", "Three?"]),
        ('He said "No." Then he left.', 14, ['He said "No."', "Then he left."]),
        ("One, two, three.", 9, ["One, two,", "three."]),
        ("One two three", 7, ["One two", "three"]),
        ("abcdefg", 3, ["abc", "def", "g"]),
        ("今天。明天。后天。", 6, ["今天。明天。", "后天。"]),
        ("Mr. Smith, who came. Ok.", 20, ["Mr. Smith, who came.", "Ok."]),
    ],
)
def test_where_a_text_is_cut(text: str, limit: int, parts: list[str]) -> None:
    assert split_source(text, lambda part: len(part) <= limit) == parts


def test_a_limit_that_no_character_meets() -> None:
    assert split_source("ab", lambda part: False) is None
