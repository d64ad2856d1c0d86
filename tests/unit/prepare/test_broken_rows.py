"""Rows that no program should have written: each is refused by line, or served as it is."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_rows import scored

from cpo_ds import cli
from cpo_ds.data.json_text import parse_json

ROW = scored({"a": 0.9, "b": 0.1, "c": 0.5})
LINE = json.dumps(ROW)
HALF = "\ud800"  # of a surrogate pair; JSON may spell it, UTF-8 may not
COMMANDS = ("candidates", "select", "report")


def prepare(command: str, folder: Path, line: str) -> int:
    """Runs a command on one line and a good row after it."""
    path, good = folder / "in.jsonl", json.dumps(ROW | {"source": "Another one."})
    path.write_text(f"{line}\n{good}\n")
    (folder / "texts.txt").write_text("eins\nzwei\n")
    output = {"select": "out", "report": "out.html"}.get(command, "out.jsonl")
    options = ["--system", f"x={folder}/texts.txt"] if command == "candidates" else []
    arguments = ["--input", str(path), "--output", str(folder / output), *options]
    return cli.main(["prepare", command, *arguments])


def with_score(text: str) -> str:
    return LINE.replace("0.9", text)


REFUSED = [
    (with_score("9" * 401), "line 1: field scores.kiwi.a is not a finite number but 999"),
    (with_score("9" * 5000), "line 1: not valid JSON (Exceeds the limit (4300 digits)"),
    (with_score("NaN"), "line 1: field scores.kiwi.a is not a finite number but nan"),
    (with_score("1e999"), "line 1: field scores.kiwi.a is not a finite number but inf"),
    (with_score("-1e300"), "line 1: field scores.kiwi.a is -1e+300, too large for a score"),
    (LINE[:-1] + ', "source": "x"}', "line 1: not valid JSON (key 'source' is given twice)"),
    (LINE.replace('"b": 0.1', '"a": 0.1'), "line 1: not valid JSON (key 'a' is given twice)"),
    ("[" * 100_000, "line 1: not valid JSON (maximum recursion depth exceeded"),
    (json.dumps(ROW | {"source": HALF}), "field source has half of a surrogate pair"),
    (json.dumps(ROW | {"candidates": {HALF: "x"}}), r"names '\ud800' with half of a surrogate"),
    (json.dumps(ROW | {"scores": {HALF: {}}}), r"field scores has a metric '\ud800' with half of"),
    (json.dumps(ROW | {"preference": {"chosen": HALF}}), r"preference.chosen is '\ud800'; write"),
    (json.dumps(ROW | {"scores": [1]}), "field scores is not an object of objects"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_a_bad_row_is_refused_by_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    for command in ("select", "report"):
        assert prepare(command, tmp_path, line) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "in.jsonl, line 1: " in error and said in error
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "texts.txt"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "extra",
    [
        {"note": f"{HALF} x", HALF: [1, {HALF: HALF}]},
        {"note": "a\0b\x1b[31m", "candidates": {"a\x1b[31m\u202e": "x", "b\0": "y", "": "z"}},
        {"scorers": {"kiwi": {"model": HALF, "uses_reference": False, "seed": [HALF]}}},
        {"scorers": {"kiwi": {"model": {"x": [1]}, "uses_reference": "maybe"}}},
        {"scorers": [1]},
        {"note": 10**400},
        {"note": float("nan")},
        {"scores": {"kiwi": {"a": 5e-324, "b": 0.0}}},
        {"source": "x" * 1_000_000},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_what_a_command_does_not_read_is_served(
    tmp_path: Path, command: str, extra: dict[str, Any]
) -> None:
    assert prepare(command, tmp_path, json.dumps(ROW | extra)) == 0
    if command == "candidates":
        written = parse_json((tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[0])
        expected = ROW | extra
        expected |= {"candidates": expected["candidates"] | {"x": "eins"}}
        assert pickle.dumps(written) == pickle.dumps(parse_json(json.dumps(expected)))


TEXT = st.text(st.characters(), max_size=4)  # halves of surrogate pairs among them
JSON = st.recursive(TEXT | st.integers() | st.none(), lambda inner: st.dictionaries(TEXT, inner))


@given(JSON)
def test_json_is_parsed_as_the_library_does(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == json.loads(text) == value
    if isinstance(value, dict) and value:
        key = json.dumps(next(iter(value)))
        with pytest.raises(ValueError, match="is given twice"):
            parse_json(f"{text[:-1]}, {key}: 1}}")


def test_paths_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jsonl")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    for path, said in (
        ("pipe.jsonl", "pipe.jsonl is neither a file nor a folder; write the rows to a file first"),
        ("loop.jsonl", "'loop.jsonl' does not exist"),
        (f"{'x' * 300}.jsonl", "File name too long"),
    ):
        for command, output in (("select", "out"), ("report", "r.html"), ("report", "loop.jsonl")):
            assert cli.main(["prepare", command, "--input", path, "--output", output]) == 2
            error = capsys.readouterr().err
            assert said in error and error.count("\n") == 1
    assert sorted(os.listdir()) == ["loop.jsonl", "pipe.jsonl"]


def test_names_from_the_command_line_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte that is not UTF-8 comes as half of a surrogate pair."""
    name = os.fsdecode(b"a\xff")
    path = tmp_path / "in.jsonl"
    path.write_text(LINE)
    for command, option in (
        ("candidates", ("--system", f"{name}={path}")),
        ("score", ("--metric", f"{name}=chrf")),
    ):
        arguments = ["--input", str(path), "--output", str(tmp_path / "out.jsonl"), *option]
        assert cli.main(["prepare", command, *arguments]) == 2
        error = capsys.readouterr().err
        assert "name is not valid UTF-8; give another one" in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["in.jsonl"]
