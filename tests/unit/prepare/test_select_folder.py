"""The folder that `cpo-ds prepare select` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from preference_data import write
from scored_rows import contents, run, scored

from cpo_ds import cli


def test_the_same_rows_give_the_same_bytes_and_nothing_stays_behind(tmp_path: Path) -> None:
    rows = [scored({"a": 0.9, "b": 0.1}, language_pair=way) for way in ("en-de", "nl-de", "cs-en")]
    run(tmp_path, rows)
    before = contents(tmp_path / "out")
    assert set(before) == {
        *("pairs.jsonl", "summary.json", "alma-r/README.md"),
        *("alma-r/cs-en.jsonl", "alma-r/de-en.jsonl", "alma-r/de-nl.jsonl"),
    }
    run(tmp_path, rows[:1])
    assert {name for name in contents(tmp_path / "out") if name.endswith("en.jsonl")} == {
        "alma-r/de-en.jsonl"
    }
    run(tmp_path, rows)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scored.jsonl"]


def test_a_folder_of_another_kind_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "scored.jsonl", [scored({"a": 0.9, "b": 0.1})])

    def said(output: Path) -> str:
        arguments = ["prepare", "select", "--input", str(path), "--output", str(output)]
        assert cli.main(arguments) == 2
        return capsys.readouterr().err

    write(tmp_path / "mine" / "pairs.jsonl", [{"prompt": "precious"}])
    assert "mine holds pairs.jsonl, which is not from this command" in said(tmp_path / "mine")
    run(tmp_path, [scored({"a": 0.9, "b": 0.1})])
    (tmp_path / "out" / "notes.txt").write_text("precious")
    assert "out holds notes.txt, which is not from" in said(tmp_path / "out")
    assert "scored.jsonl is a file; give a folder" in said(path)
    assert "cannot be written: Not a directory" in said(path / "below")
    assert (tmp_path / "out" / "notes.txt").exists() and "precious" in (
        tmp_path / "mine" / "pairs.jsonl"
    ).read_text()


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cpo_ds.prepare import select

    run(tmp_path, [scored({"a": 0.9, "b": 0.1})])
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(select, "AlmaFolder", full)
    arguments = ["prepare", "select", "--input", tmp_path / "scored.jsonl", "--output"]
    assert cli.main([*map(str, arguments), str(tmp_path / "out")]) == 2
    assert "out cannot be written: No space left on device; make room" in capsys.readouterr().err
    assert contents(tmp_path) == before
