"""Prompts, directions and chat rendering."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.data.prompts import (
    LANGUAGES,
    alma_prompt,
    parse_direction,
    render_completions,
    source_of,
    split_conversations,
)
from cpo_ds.errors import UserError

CODES = st.sampled_from(sorted(LANGUAGES))


def test_alma_prompt_is_almas_string() -> None:
    assert alma_prompt("Guten Tag.", "de", "en") == (
        "Translate this from German to English:\nGerman: Guten Tag.\nEnglish:"
    )
    assert alma_prompt("Hi", "en", "zh") == (
        "Translate this from English to Chinese:\nEnglish: Hi\nChinese:"
    )


def test_languages_are_the_fifty_of_x_alma() -> None:
    assert len(LANGUAGES) == len(set(LANGUAGES.values())) == 50
    expected = {
        "en": "English",
        "cs": "Czech",
        "is": "Icelandic",
        "fa": "Persian",
        "mg": "Malagasy",
    }
    assert {code: LANGUAGES[code] for code in expected} == expected


@given(CODES, CODES)
def test_parse_direction_reads_every_pair(source: str, target: str) -> None:
    if source == target:
        with pytest.raises(UserError, match="unknown direction"):
            parse_direction(f"{source}-{target}")
    else:
        assert parse_direction(f"{source}-{target}") == (source, target)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("en_de", "did you mean en-de"),
        ("en->de", "did you mean en-de"),
        ("EN-DE", "did you mean en-de"),
        ("en-germn", "did you mean en-de"),
        ("english-czech", "did you mean en-cs"),
        ("en-DE", "did you mean en-de"),
        ("de", "like en-de"),
        ("", "like en-de"),
        ("en-de-fr", "like en-de"),
        ("de-de", "unknown direction 'de-de'"),
    ],
)
def test_parse_direction_names_the_closest(wrong: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        parse_direction(wrong)


def test_alma_prompt_refuses_unknown_languages() -> None:
    with pytest.raises(UserError, match="unknown language code 'ge'"):
        alma_prompt("Hi", "en", "ge")


@given(st.text(), CODES, CODES, st.text(), st.text(alphabet="[]/ INST<|>\n"))
def test_source_of_inverts_alma_prompt(
    source: str, first: str, second: str, before: str, after: str
) -> None:
    if first == second:
        return
    prompt = alma_prompt(source, first, second)
    assert source_of(prompt, f"{first}-{second}") == source
    assert source_of(before + prompt + after, f"{first}-{second}") == source


def test_source_of_a_text_that_looks_like_a_prompt() -> None:
    text = "one\nGerman: two\nGerman:"
    assert source_of(alma_prompt(text, "en", "de") + "[/INST]", "en-de") == text


def test_source_of_knows_no_other_prompt() -> None:
    prompt = alma_prompt("Hi", "en", "de")
    assert source_of(prompt, "de-en") is None
    assert source_of(prompt, "") is None
    assert source_of("Translate: Hi", "en-de") is None
    assert source_of("Translate this from English to German:\nEnglish: Hi", "en-de") is None


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_split_conversations_at_the_first_difference() -> None:
    assert split_conversations([user("q"), bot("a")], [user("q"), bot("b")]) == (
        [user("q")],
        [bot("a")],
        [bot("b")],
    )
    assert split_conversations([user("q"), bot("a")], [user("r"), bot("a")])[0] == []


def test_split_conversations_leaves_no_empty_remainder() -> None:
    short, long = [user("q"), bot("a")], [user("q"), bot("a"), user("more"), bot("b")]
    assert split_conversations(short, long) == ([user("q")], [bot("a")], long[1:])
    assert split_conversations(short, short) == ([user("q")], [bot("a")], [bot("a")])


def test_render_completions_moves_the_boundary_where_a_template_rewrites_the_prompt() -> None:
    def render(messages: list[dict[str, str]], generate: bool) -> str:
        body = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        return body + ("<assistant><think>" if generate else "<end>")

    prompt, chosen, rejected = render_completions([user("q")], ([bot("a")], [bot("<thin")]), render)
    assert (prompt, chosen, rejected) == ("<user>q<assistant>", "a<end>", "<thin<end>")
