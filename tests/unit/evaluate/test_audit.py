"""Faults that metrics forgive: each is found, and what only looks like one is not."""

from __future__ import annotations

import builtins
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from candidate_rows import rows_file
from evaluated import refused, row

from cpo_ds.cli import main
from cpo_ds.data.prompts import alma_prompt
from cpo_ds.evaluate.audit import AuditedText, faults_of, is_repeated
from cpo_ds.evaluate.language_check import BY_SCRIPT, IsIn, language_check

GERMAN = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter."
ENGLISH = "This is a perfectly ordinary English sentence about the weather."
RUSSIAN = "Это совершенно обычное русское предложение о погоде."


@functools.cache
def german_check() -> IsIn:
    return language_check(["de"])[0]


def faults(text: str, source: str = ENGLISH, reference: str | None = GERMAN) -> list[str]:
    audited = AuditedText("one", "en-de", source, text, reference, "line 1")
    return faults_of(audited, german_check(), 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GERMAN, []),
        ("", ["empty"]),
        (" \u200b", ["empty"]),
        (ENGLISH, ["copied source", "wrong language"]),
        (f" {ENGLISH.replace(' ', '  ')}", ["copied source", "wrong language"]),
        (RUSSIAN, ["wrong language"]),
        ("Das ist das Wetter, das Wetter, das Wetter, das Wetter, das Wetter.", ["repetition"]),
        ("Wetter.", ["off length"]),
        (f"{GERMAN} Und {GERMAN} Aber {GERMAN}", ["off length"]),
    ],
)
def test_each_fault(text: str, expected: list[str]) -> None:
    assert faults(text) == expected


def test_a_name_may_stay_as_it_is() -> None:
    assert faults("Berlin", "Berlin", "Berlin") == []
    assert faults("Berlin", "Berlin", "In Berlin") == ["copied source"]
    assert faults("ha ha ha ha ha ha", "ha ha ha ha ha ha", None) == ["copied source"]


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("谢谢谢谢谢谢谢谢", True),
        ("Er kam, sah und siegte.", False),
        ("und so weiter und so weiter und so weiter und so weiter", True),
        ("..........................", False),
        ("1000000000000000", False),
        ("-- -- -- -- -- -- -- --", False),
    ],
)
def test_repetition(text: str, repeats: bool) -> None:
    assert is_repeated(text) is repeats


def test_without_py3langid_scripts_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("py3langid"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    is_in, notes = language_check(["de", "zh"])
    assert notes == [BY_SCRIPT]
    assert is_in(ENGLISH, "de") and not is_in(RUSSIAN, "de") and is_in("OK", "zh")
    assert not is_in(ENGLISH, "zh") and is_in("今天的天气非常好，我们去公园散步吧。", "zh")
    assert is_in(RUSSIAN, "ru") and not is_in(GERMAN, "uk")


def test_a_language_that_py3langid_does_not_know() -> None:
    is_in, notes = language_check(["sah"])
    assert notes == ["wrong language: sah is judged by its script alone"]
    assert is_in(RUSSIAN, "sah") and is_in(ENGLISH, "sah")


def run(folder: Path, *options: str) -> dict[str, Any]:
    output = folder / "audit.json"
    assert main(["evaluate", "audit", *options, "--json", str(output)]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


def test_systems_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("en-de", number) for number in range(4)] + [row("de-en")]
    rows[2]["candidates"]["two"] = ""
    rows[3]["candidates"]["two"] = rows[3]["source"]
    path = rows_file(tmp_path, *rows)
    made = run(tmp_path, "--input", str(path))["audits"]
    (two,) = [a for a in made if (a["system"], a["language_pair"]) == ("two", "all")]
    assert (two["texts"], two["empty"], two["copied_source"]) == (5, 1, 1)
    assert two["places"]["empty"] == [f"{path}, line 3"]
    printed = capsys.readouterr().out
    assert "1 (20.0%)" in printed and "length: characters, for each of the references'" in printed
    one = run(tmp_path, "--input", str(path), "--system", "one")["audits"]
    assert {a["system"] for a in one} == {"one"}


def test_chosen_against_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = alma_prompt(ENGLISH, "en", "de")
    pairs = [
        {"prompt": prompt, "chosen": GERMAN, "rejected": ENGLISH, "direction": "en-de"},
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": GERMAN}],
            "rejected": [{"role": "assistant", "content": f"{GERMAN} {GERMAN}"}],
            "direction": "en-de",
        },
    ]
    made = run(tmp_path, "--pairs", str(rows_file(tmp_path, *pairs)))
    chosen, rejected = made["audits"]
    assert (chosen["system"], chosen["copied_source"]) == ("chosen", 0)
    assert (rejected["system"], rejected["copied_source"]) == ("rejected", 1)
    assert "chosen is shorter than rejected in 100% of 2 pairs" in capsys.readouterr().err


def test_each_of_several_rejected_texts_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {
        "prompt": f"Translate this from English to German:\nEnglish: {ENGLISH}\nGerman:",
        "chosen": GERMAN,
        "rejected": [ENGLISH, f"{GERMAN} {GERMAN}", GERMAN[:9]],
        "direction": "en-de",
    }
    chosen, rejected = run(tmp_path, "--pairs", str(rows_file(tmp_path, pair)))["audits"]
    assert (chosen["texts"], rejected["texts"], rejected["copied_source"]) == (1, 3, 1)
    assert "of 3 pairs" in capsys.readouterr().err


def test_rows_without_any_rejected_text_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"prompt": "a", "chosen": GERMAN, "rejected": [], "direction": "en-de"}
    error = refused(capsys, "audit", "--pairs", str(rows_file(tmp_path, pair)))
    assert "no row has a rejected text" in error


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(rows_file(tmp_path, row()))
    assert "field direction is missing" in refused(capsys, "audit", "--pairs", path)
    said = refused(capsys, "audit", "--pairs", path, "--system", "one")
    assert "pairs have none" in said
    assert "is not free" in refused(capsys, "audit", "--input", path, "--json", path)
    assert "did you mean one?" in refused(capsys, "audit", "--input", path, "--system", "onee")
