"""`cpo-ds prepare select`: which pairs are dropped, and which rows are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from scored_rows import refused, run, scored

# What is dropped.


def test_margin_duplicates_and_equal_texts(tmp_path: Path) -> None:
    good = scored({"a": 0.9, "b": 0.5})
    rows = [
        good,
        good | {"source": "Morning."},
        good | {"scores": scored({"a": 0.8, "b": 0.1})["scores"]},
        good | {"language_pair": "en-nl"},
        good | {"candidates": {"a": "same", "b": "same"}},
        scored({"a": 0.9, "b": 0.75}),
        scored({"a": 0.9, "b": 0.9}),
    ]
    pairs, summary = run(tmp_path, rows, "--min-margin", "0.2")
    assert [(p["prompt"].split("\n")[1], p["direction"]) for p in pairs] == [
        ("English: Good morning.", "en-de"),
        ("English: Morning.", "en-de"),
        ("English: Good morning.", "en-nl"),
    ]
    assert summary["dropped"] == {
        "duplicate": 1,
        "chosen equals rejected": 1,
        "margin below 0.2": 1,
        "equal scores": 1,
    }


def test_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [scored({"a": 0.9, "b": 0.5}, language_pair=way) for way in ("en-de", "en-nl", "en-sv")]
    pairs, summary = run(tmp_path, rows, "--directions", "en-sv, en-de")
    assert [pair["direction"] for pair in pairs] == ["en-de", "en-sv"]
    assert summary["dropped"] == {"direction not selected": 1}
    said = refused(capsys, tmp_path / "2", rows, "--directions", "en-de,de-en")
    assert (
        "--directions: de-en is not in the rows; choose among those that are: en-de, en-nl" in said
    )
    said = refused(capsys, tmp_path / "2", rows, "--directions", "en_de")
    assert "--directions: unknown direction 'en_de'; did you mean en-de?" in said


def test_lengths_against_the_direction_s_median(tmp_path: Path) -> None:
    def row(source: str, a: str, b: str) -> dict[str, Any]:
        return scored({"a": 1, "b": 0}, source=source, reference=None, candidates={"a": a, "b": b})

    rows = [
        row("x" * 10, "y" * 20, "z" * 20),  # ratios 2, 2
        row("x" * 20, "y" * 40, "z" * 40),  # 2, 2: the median
        row("x" * 30, "y" * 60, "z" * 121),  # 2, 4.03: too long
        row("x" * 40, "y" * 160, "z" * 40),  # 4, 1: both just within
        row("x" * 50, "y" * 49, "z" * 100),  # .98, 2: too short
    ]
    pairs, summary = run(tmp_path, rows, "--max-length-ratio", 2)
    assert [len(pair["chosen"]) for pair in pairs] == [20, 40, 160]
    assert summary["dropped"] == {"length 2 times off": 2}
    other = [
        row | {"language_pair": "en-nl", "candidates": {"a": "y", "b": "z"}} for row in rows[:2]
    ]
    _, summary = run(tmp_path, rows + other, "--max-length-ratio", 2)
    assert summary["pairs"] == {"en-de": 3, "en-nl": 2}  # a median of its own


def test_languages(tmp_path: Path) -> None:
    english = "The weather has been fine since the beginning of the week."
    german = "Das Wetter ist seit Anfang der Woche schön und soll so bleiben."
    other = "Das Wetter war in dieser Woche meistens gut, sagte sie."
    french = "Il fait beau depuis le début de la semaine, dit-elle."
    dutch = "Het weer is sinds het begin van de week erg mooi geweest."

    def row(a: str, b: str, source: str = english) -> dict[str, Any]:
        return scored({"a": 1, "b": 0}, source=source, candidates={"a": a, "b": b})

    rows = [row(german, other), row(french, german), row(german, dutch), row(german, english)]
    copy = " " + english.replace("weather", "wea\u00adther")
    rows += [row("Rome", "Paris"), row(copy, german)]  # too short to tell; a copy
    pairs, summary = run(tmp_path, rows, "--check-language")
    assert [pair["chosen"] for pair in pairs] == [german, "Rome"]
    assert summary["dropped"] == {"not in the target language": 2, "copy of the source": 2}
    _, summary = run(tmp_path, rows, "--check-language", "1")
    assert summary["options"]["check_language"] == 1.0
    assert summary["dropped"] == {"copy of the source": 2}  # nobody is so sure
    assert len(run(tmp_path, rows)[0]) == 6


def test_without_py3langid_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    said = refused(capsys, tmp_path, [scored({"a": 1, "b": 0})], "--check-language")
    assert "pip install 'cpo-ds[langid]'" in said


# Errors.


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, ["--metrics", "kiwi+bleu"], "no row has a score by 'bleu'; set --metrics to one of"),
        ({}, ["--metrics", "xcomt"], "'xcomt' (did you mean xcomet?); set"),
        ({}, ["--metrics", "kiwi+kiwi-xxl"], "names kiwi twice"),
        ({"scores": {}}, [], "no row of --input has scores; make some with `cpo-ds prepare score`"),
        ({"scores": {"chrf": {"a": 1}}}, ["--metrics", "kiwi"], "by 'kiwi'; set --metrics to one"),
        ({"scores": [1]}, [], "line 2: field scores is not an object of objects"),
        ({"scores": {"kiwi": 1}}, [], "line 2: field scores is not an object of objects"),
        ({"scores": {"kiwi": {"a": float("nan")}}}, [], "2: field scores.kiwi.a is not a finite"),
        ({"scores": {"kiwi": {"a": True}}}, [], "field scores.kiwi.a is not a finite number"),
        ({"scores": {"kiwi": {"a": 10**400}}}, [], "field scores.kiwi.a is not a finite number"),
        (
            {"scores": {"kiwi": {"a": "1"}}},
            [],
            "field scores.kiwi.a is not a finite number but '1'",
        ),
        ({"preference": "a"}, [], "line 2: field preference is not an object but 'a'"),
        ({"preference": {"chosen": "a"}}, [], "line 2: field preference.rejected is None; write"),
        (
            {"preference": {"chosen": ["a"], "rejected": "b"}},
            [],
            "field preference.chosen is ['a']",
        ),
        (
            {"preference": {"chosen": "gpt", "rejected": "b"}},
            [],
            "preference.chosen is 'gpt'; write one of the row's translations: reference, a, b, c.",
        ),
        ({"preference": {"chosen": "a", "rejected": "a"}}, [], "'a' as chosen and as rejected"),
        ({"language_pair": "en_xx"}, [], "line 2: field language_pair has an unknown direction"),
        ({}, ["--min-margin", "-1"], "--min-margin is -1.0"),
        ({}, ["--min-margin", "nan"], "--min-margin is nan"),
        ({}, ["--min-margin", "0.9"], "no pair is left of 2 rows (dropped: margin below 0.9: 2)"),
        ({}, ["--max-length-ratio", "1"], "--max-length-ratio is 1.0; give a number above 1"),
        ({}, ["--check-language", "70"], "--check-language is 70.0; give a probability"),
    ],
)
def test_errors_say_what_and_where(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    options: list[str],
    message: str,
) -> None:
    row = scored({"a": 0.9, "b": 0.5})
    rows = [row, row | change] if "field" in message else [row | change, row | change]
    assert message in refused(capsys, tmp_path, rows, *options)
