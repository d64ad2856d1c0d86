"""The formats of preference data: ALMA-R and X-ALMA, and any value anywhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preference_data import PAIR, TRIPLET, X_ALMA, alma, pairs_of, read, render_chat, write
from repository import ROOT

from cpo_ds.data.rows import read_rows
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow
from cpo_ds.settings.data import DataConfig

INTO_GERMAN = "Translate this from English to German:\nEnglish: Hello world.\nGerman:"
INTO_ENGLISH = "Translate this from German to English:\nGerman: Hallo Welt.\nEnglish:"


def test_alma_row_gives_both_directions_and_the_first_of_ties(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [alma()])
    rows, report = read(path, "alma-r")
    origin = f"{path}:1"
    assert rows == [
        PreferenceRow(INTO_ENGLISH, "Hello, world.", ("Hello the world.",), "de-en", origin),
        PreferenceRow(INTO_GERMAN, "Hallo Welt.", ("Grüß dich Welt.",), "en-de", origin),
    ]
    assert report.read == 1 and not report.dropped
    assert report.kept == {"de-en": 1, "en-de": 1}


def test_alma_lowest_tie_goes_to_the_first_too(tmp_path: Path) -> None:
    scores = {"ref_en_kiwi_xcomet": 0.3, "gpt4_en_kiwi_xcomet": 0.3, "alma_en_kiwi_xcomet": 0.7}
    path = write(tmp_path / "a.jsonl", [alma(**scores)])
    picked = pairs_of(path, "alma-r", directions=["de-en"])
    assert picked == [("de-en", "Hello the world.", "Hello world.")]


@pytest.mark.parametrize(
    ("delta", "chosen", "rejected"),
    [(1.0, "Hello, world.", "Hello the world."), (-0.5, "Hello the world.", "Hello, world.")],
)
def test_alma_human_verdict_beats_scores(
    tmp_path: Path, delta: float, chosen: str, rejected: str
) -> None:
    human = alma(Delta=delta, required_directions="de-en", gpt4_en_kiwi_xcomet=None)
    path = write(tmp_path / "a.jsonl", [human])
    assert pairs_of(path, "alma-r") == [("de-en", chosen, rejected)]


def test_alma_required_direction_may_be_the_reverse_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [alma(required_directions="en-de")])
    assert [pair[0] for pair in pairs_of(path, "alma-r")] == ["en-de"]
    path = write(tmp_path / "a.jsonl", [alma(required_directions=None)])
    assert [pair[0] for pair in pairs_of(path, "alma-r")] == ["de-en", "en-de"]


def test_alma_scorer_and_equal_scores(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [alma()])
    rows, report = read(path, "alma-r", scorer="kiwi")
    assert [(r.chosen, r.rejected[0]) for r in rows] == [("Grüß dich Welt.", "Hallo Welt.")]
    assert report.dropped == {"all scores equal": 1}
    for spelling in ("xcomet_kiwi", "kiwi-xcomet", "xcomet-kiwi"):
        assert pairs_of(path, "alma-r", scorer=spelling) == pairs_of(path, "alma-r")
    with pytest.raises(UserError, match=r"data\.scorer.*'xcomt' \(did you mean xcomet\?\)"):
        read(path, "alma-r", scorer="xcomt")


def test_alma_scorer_of_any_name_that_the_row_has(tmp_path: Path) -> None:
    chrf = {"ref_en_chrf": 1, "gpt4_en_chrf": 2, "alma_en_chrf": 3, "ref_de_chrf": 0}
    human = alma(Delta=1.0, required_directions="de-en")
    path = write(tmp_path / "a.jsonl", [alma(**chrf, required_directions="de-en"), human])
    assert pairs_of(path, "alma-r", scorer="chrf") == [
        ("de-en", "Hello the world.", "Hello world."),
        ("de-en", "Hello, world.", "Hello the world."),  # a person's verdict needs no score
    ]
    with pytest.raises(
        UserError, match=r"line 1 has no score 'chr' \(did you mean chrf\?\).*chrf\."
    ):
        read(path, "alma-r", scorer="chr")
    path = write(tmp_path / "a.jsonl", [alma(**chrf)])
    with pytest.raises(UserError, match=r"field translation\.gpt4_de_chrf is missing"):
        read(path, "alma-r", scorer="chrf")


def test_alma_equal_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [alma(gpt4_en="same", alma_en="same")])
    _, report = read(path, "alma-r")
    assert report.dropped == {"chosen equals rejected": 1}
    assert report.kept == {"en-de": 1}
    assert report.lines() == [
        "read 1 rows, kept 1 pairs",
        "  en-de: 1",
        "  dropped, chosen equals rejected: 1",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (alma(alma_en_kiwi_xcomet=None), "field translation.alma_en_kiwi_xcomet is missing"),
        (alma(alma_en_kiwi_xcomet=float("nan")), "translation.alma_en_kiwi_xcomet is nan"),
        (alma(alma_en_kiwi_xcomet="0.5"), "alma_en_kiwi_xcomet is not a number but '0.5'"),
        (alma(ref_en_kiwi_xcomet=True), "ref_en_kiwi_xcomet is not a number but True"),
        (alma(Delta=None), "field translation.Delta is missing"),
        (alma(Delta=float("nan")), "translation.Delta is nan"),
        (alma(gpt4_en=" "), "field translation.gpt4_en is empty"),
        (alma(de=7), "field translation.de is not a string but 7"),
        (alma(language_pair="de_xx"), "field translation.language_pair has an unknown direction"),
        (alma(language_pair="de-xx"), "field translation.xx is missing"),
        (alma(required_directions="en-cs"), "required_directions is 'en-cs'; write de-en, en-de"),
        ({"translation": "x"}, "field translation is not an object but 'x'"),
        ({}, "field translation is missing"),
    ],
)
def test_alma_errors_name_line_and_field(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", [alma(), row])
    with pytest.raises(UserError) as caught:
        read(path, "alma-r")
    assert f"{path}, line 2: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("direction", ["en-de", "en->de", "en_de", "en -> de"])
def test_x_alma_row(tmp_path: Path, direction: str) -> None:
    path = write(tmp_path / "x.jsonl", [X_ALMA | {"directions": direction}])
    prompt = "Translate this from English to German:\nEnglish: Hi\nGerman:"
    rows, _ = read(path, "x-alma")
    assert rows == [PreferenceRow(prompt, "Hallo", ("He",), "en-de", f"{path}:1")]


def test_chat_prompt_is_one_user_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [X_ALMA])
    rows, _ = read(path, "x-alma", prompt_style="chat")
    assert rows[0].prompt == (
        "<s><user>Translate this from English to German:\nEnglish: Hi\nGerman:</user><assistant>"
    )
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        read(path, "x-alma", render=None, prompt_style="chat")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["role", "content", "kiwi", "xcomet", "a"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hallo"}
CHAT = {"prompt": [USER], "chosen": [BOT], "rejected": [BOT, USER]}
EXAMPLES = {"alma-r": [alma()], "x-alma": [X_ALMA], "triplets": [TRIPLET], "pairs": [PAIR, CHAT]}


@given(st.data(), JSON)
def test_a_value_of_any_kind_anywhere_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    format = data.draw(st.sampled_from(sorted(EXAMPLES)))
    row = json.loads(json.dumps(data.draw(st.sampled_from(EXAMPLES[format]))))
    container, depth = row, data.draw(st.integers(1, 4))
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        key, depth = data.draw(st.sampled_from(keys)), depth - 1
        if depth == 0 or not isinstance(container[key], dict | list) or not container[key]:
            break
        container = container[key]
    container[key] = value
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row))
    try:
        rows, report = read(path, format)
    except UserError as error:
        assert "any.jsonl" in str(error) and "\n" not in str(error)
    else:
        assert len(rows) == sum(report.kept.values()) > 0


def test_the_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `([a-z-]+)`\n(.*?)(?=^#{2,3} )", text, flags=re.M | re.S)
    many = re.search(r"^## Several rejected translations\n(.*?)(?=^## )", text, flags=re.M | re.S)
    assert many
    sections.append(("pairs", many[1]))
    examples = [
        (format, json.loads(example))
        for format, section in sections
        for example in re.findall(r"```json\n(.*?)\n```", section, flags=re.S)
    ]
    assert [format for format, _ in examples] == [
        *("alma-r", "x-alma", "pairs", "pairs", "pairs", "triplets", "sample", "pairs")
    ]
    for format, row in examples:
        path = write(tmp_path / "example.jsonl", [row])
        data = DataConfig(format=format, path=None if format == "sample" else str(path))
        rows, report = read_rows(data, render_chat, str(path))
        assert len(rows) == (2 if format == "alma-r" else 1) and not report.dropped
