"""Cleaning of translations: one line, and nothing but the translation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.prepare.translation.cleaning import FIRST_LINE, LABEL, PROMPT, REASONING, SPACES, clean

# Cleaning.


@pytest.mark.parametrize(
    "raw, text, done",
    [
        ("Hallo.", "Hallo.", ()),
        (" Hallo.", "Hallo.", (SPACES,)),
        ("Hallo.\nEnglish: Next\nGerman: Weiter", "Hallo.", (FIRST_LINE,)),
        ("\n\n Hallo. \r\nmore", "Hallo.", (FIRST_LINE, SPACES)),
        ("Hallo.\n\n", "Hallo.", (SPACES,)),
        ("German: Hallo.", "Hallo.", (LABEL, SPACES)),
        ("\n\n### German:\nHallo.", "Hallo.", (LABEL, SPACES)),
        ("Germany: Hallo.", "Germany: Hallo.", ()),
        ("In German: Hallo.", "In German: Hallo.", ()),
        ("English: Hi.\nGerman: Hallo.\nEnglish:", "Hallo.", (PROMPT, FIRST_LINE, SPACES)),
        ("<think>\nEasy.\n</think>\n\nHallo.", "Hallo.", (REASONING, SPACES)),
        ("Easy.</think>Hallo.", "Hallo.", (REASONING,)),
        ("<think>So, first", "", (REASONING,)),
        ("", "", ()),
        (" \n ", "", ()),
        ("German:", "", (LABEL,)),
        ("你好。\n再见。", "你好。", (FIRST_LINE,)),
    ],
)
def test_cleaning_by_hand(raw: str, text: str, done: tuple[str, ...]) -> None:
    assert clean(raw, "German", "English: Hi.\nGerman:") == (text, done)


@given(st.text(alphabet="ab: \n\r\t#<>/thinkGerman\u2028", max_size=40))
def test_cleaning_gives_one_line_and_says_if_anything_was_done(raw: str) -> None:
    text, done = clean(raw, "German")
    assert "\n" not in text and text == text.strip()
    assert text in raw
    assert (text == raw) == (not done) or not text.strip()


@given(st.text(alphabet="abc ", min_size=1), st.lists(st.text(alphabet="xyz \n"), max_size=3))
def test_a_first_line_survives_whatever_follows(line: str, more: list[str]) -> None:
    if line.strip():
        assert clean("\n".join([line, *more]), "German")[0] == line.strip()
