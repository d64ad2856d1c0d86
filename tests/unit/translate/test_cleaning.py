"""Cleaning of translations: one line, and nothing but the translation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.data.sameness import is_blank
from cpo_ds.translate.cleaning import (
    FENCE,
    FIRST_LINE,
    LABEL,
    PROMPT,
    REASONING,
    SPACES,
    clean,
)

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
        ("\u200b\nHallo.", "Hallo.", (SPACES,)),
        ("\u200b\u00ad", "", ()),
        # Fenced blocks.
        ("```\nHallo.\n```", "Hallo.", (FENCE, SPACES)),
        ("\n```text\nHallo.\n```\n\nI hope this helps!", "Hallo.", (FENCE, SPACES)),
        ("~~~ german\n Hallo.\nWelt.\n~~~", "Hallo.", (FENCE, FIRST_LINE, SPACES)),
        ("```Hallo.```", "Hallo.", (FENCE,)),
        ("```\nHallo.```", "Hallo.", (FENCE,)),
        ("```\r\nHallo.\r\n```", "Hallo.", (FENCE, SPACES)),
        ("German:\n```\nHallo.\n```", "Hallo.", (LABEL, FENCE, SPACES)),
        ("```\nGerman: Hallo.\n```", "Hallo.", (LABEL, FENCE, SPACES)),
        ("The translation is:\n\n```\nHallo.\n```", "Hallo.", (FENCE, SPACES)),
        ("<think>\nEasy.\n</think>\n```\nHallo.\n```", "Hallo.", (REASONING, FENCE, SPACES)),
        ("````\n```\nHallo.\n```\n````", "Hallo.", (FENCE, SPACES)),
        ("```text\nHallo.", "Hallo.", (FENCE,)),  # cut off
        ("```\n```", "", (FENCE,)),
        ("```text", "", (FENCE,)),
        ("```", "", (FENCE,)),
        ("Der Befehl `ls`.", "Der Befehl `ls`.", ()),
        ("Nimm ```x```.", "Nimm ```x```.", ()),
    ],
)
def test_cleaning_by_hand(raw: str, text: str, done: tuple[str, ...]) -> None:
    assert clean(raw, "German", "English: Hi.\nGerman:") == (text, done)


@given(st.text(alphabet="ab: \n\r\t#<>/thinkGerman`~\u2028\u200b", max_size=40))
def test_cleaning_gives_one_line_and_says_if_anything_was_done(raw: str) -> None:
    text, done = clean(raw, "German")
    assert "\n" not in text and text == text.strip()
    assert text in raw
    assert (text == raw) == (not done) or is_blank(text)
    assert not text or not is_blank(text)


@given(
    st.sampled_from(["```", "````", "~~~"]),
    st.sampled_from(["", "text", "de", "German", "plain text"]),
    st.text(alphabet="ab c", min_size=1),
    st.sampled_from(["", "\n", "\nmore", "\n\nI hope this helps."]),
)
def test_a_fence_is_never_the_translation(fence: str, info: str, line: str, after: str) -> None:
    for answer in (f"{fence}{info}\n{line}\n{fence}{after}", f"{fence}{info}\n{line}"):
        assert clean(answer, "German")[0] == line.strip()
    assert clean(f"{fence}{line}{fence}{after}", "German")[0] == line.strip()
    assert clean(f"{fence}{info}\n{fence}{after}", "German")[0] == ""


@given(st.text(alphabet="abc ", min_size=1), st.lists(st.text(alphabet="xyz \n"), max_size=3))
def test_a_first_line_survives_whatever_follows(line: str, more: list[str]) -> None:
    if line.strip():
        assert clean("\n".join([line, *more]), "German")[0] == line.strip()
