"""A file of numbers is computed again, and whatever was changed is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from candidate_rows import rows_file
from evaluated import evaluate, refused, row

from cpo_ds.cli import main
from cpo_ds.evaluate import verify
from cpo_ds.scoring import corpus

OPTIONS = ("--metric", "bleu", "--metric", "chrf", "--paired-bs", "--paired-bs-n", "100")
ROWS = [row(pair, number) for pair in ("en-de", "zh-en") for number in range(4)]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    report = evaluate(tmp_path, ROWS, *OPTIONS, "--selected-by", "one=xcomet")
    return tmp_path / "out.json", report


def problems(file: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    assert main(["evaluate", "--verify", str(file), *options]) == 2
    return capsys.readouterr().err


def test_an_untouched_file_is_confirmed(
    made: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file, report = made
    assert main(["evaluate", "--verify", str(file)]) == 0
    number = len(report["results"])
    assert f"all {number} numbers were computed again and are equal" in capsys.readouterr().out


def change_score(report: Any) -> None:
    report["results"][0]["score"] += 0.01


def change_mean(report: Any) -> None:
    report["results"][-1]["score"] += 0.01


def change_version(report: Any) -> None:
    result = report["results"][0]
    result["signature"] = result["signature"].replace("|version:", "|version:1.4.")


def change_p_value(report: Any) -> None:
    report["significance"][0]["p_value"] = 0.001


def change_headline(report: Any) -> None:
    report["headline"] = ["bleu"]


def hide_training(report: Any) -> None:
    report["selected_by"] = {"one": ["chrf"]}


def drop_result(report: Any) -> None:
    del report["results"][0]


def swap_systems(report: Any) -> None:
    for result in report["results"]:
        result["system"] = {"one": "two", "two": "one"}[result["system"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_score, "bleu of one, en-de: the score is "),
        (change_mean, "chrf of two, all: the score is "),
        (change_version, "bleu of one, en-de: version was 1.4."),
        (change_p_value, "significance: the tests differ"),
        (change_headline, "headline: it is ['bleu']"),
        (hide_training, "interferes is False, and should be True"),
        (drop_result, "bleu of one, en-de: the file lacks this score"),
        (swap_systems, "bleu of two, en-de: the translations are not those"),
    ],
)
def test_a_tampered_file_is_found_out(
    made: tuple[Path, Any],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Any], None],
    message: str,
) -> None:
    file, report = made
    change(report)
    file.write_text(json.dumps(report), encoding="utf-8")
    assert message in problems(file, capsys)


def test_other_rows_are_found_out(
    made: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = made
    others = json.loads(json.dumps(ROWS))
    others[1]["candidates"]["one"] += "!"
    others[2]["reference"] += "!"
    (tmp_path / "others").mkdir()
    said = problems(file, capsys, "--input", str(rows_file(tmp_path / "others", *others)))
    assert "bleu of one, en-de: the translations are not those that it was computed from" in said
    assert "bleu of two, en-de: the references are not those" in said
    assert "bleu of two, en-de: the translations" not in said
    assert "zh-en: the" not in said


def result_text(more: Any = None, **changes: Any) -> str:
    result = {
        "system": "one", "language_pair": "en-de", "metric": "chrf", "score": 1.0, "segments": 1,
        "signature": "chrF2|n:1", "interferes": False,
    }  # fmt: skip
    return json.dumps({"results": [result | changes], **(more or {})})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "there are no results"),
        ('{"results": []}', "its results are empty"),
        ('{"results": [{"system": "one"}]}', "result 1 is malformed"),
        (result_text(system=["one"]), "result 1 is malformed: ['one'] is not a string"),
        (result_text(score="x"), "result 1 is malformed"),
        (result_text(score=float("nan")), "result 1 is malformed: the score is nan"),
        (result_text(signature="x|y"), "result 1 is malformed: 'y' is no key:value"),
        (result_text(signature="x|n:1"), "the signature of x names no model"),
        (result_text(signature="BLEU|tok:none"), "there is no tokenizer none"),
        (result_text(signature="chrF2|n:1", more={"selected_by": 5}), "selected_by or"),
    ],
)
def test_files_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    file = tmp_path / "file.json"
    file.write_text(content, encoding="utf-8")
    rows = rows_file(tmp_path, row())
    assert message in refused(capsys, "--verify", str(file), "--input", str(rows))


def test_missing_rows_and_files_are_said(
    made: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be read" in refused(capsys, "--verify", str(tmp_path / "no.json"))
    (tmp_path / "rows.jsonl").unlink()
    assert "give them by --input" in refused(capsys, "--verify", str(made[0]))


def test_the_tokenizer_is_that_of_the_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a package came or went since, the number is still computed by the same tokenizer."""
    monkeypatch.setattr(corpus.importlib.util, "find_spec", lambda name: None)
    evaluate(tmp_path, [row("en-ja", number) for number in range(3)], "--metric", "bleu")
    monkeypatch.setattr(corpus.importlib.util, "find_spec", lambda name: True)
    assert main(["evaluate", "--verify", str(tmp_path / "out.json")]) == 0


def test_only_the_first_differences_are_shown() -> None:
    assert verify.shown(["a"] * 25)[-1] == "and 5 more"
    assert verify.shown(["a"] * 20) == ["a"] * 20
