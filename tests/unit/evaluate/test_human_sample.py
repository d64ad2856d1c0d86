"""Drawing a blinded sample, and the tasks made of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from human_rows import SCRIPT, evaluate_human, rows_of, sample
from preference_data import write

from cpo_ds.evaluate.human.sample import Span, share_out, utf16_span


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def refused(
    capsys: pytest.CaptureFixture[str], folder: Path, rows: list[Any], *options: object
) -> str:
    """The error message for wrong rows or options; nothing may be written."""
    path = write(folder / "rows.jsonl", rows)
    arguments = ("sample", "--input", path, "--output", folder / "tasks", *options)
    assert evaluate_human(*arguments) == 2
    assert [file.name for file in folder.iterdir()] == ["rows.jsonl"]
    said = capsys.readouterr().err
    assert said.startswith("cpo_ds: error: ") and said.count("\n") == 1
    return said


def test_directions_get_equal_shares_as_far_as_they_have_rows() -> None:
    assert share_out({"a": 100, "b": 3, "c": 100}, 40) == {"a": 18, "b": 3, "c": 19}
    assert share_out({"a": 2, "b": 3}, 40) == {"a": 2, "b": 3}
    assert share_out({"a": 2, "b": 3}, 1) == {"b": 1}


def test_the_same_seed_draws_the_same_and_no_system_has_a_favoured_letter(tmp_path: Path) -> None:
    rows = rows_of("en-de", 300) + rows_of("de-en", 300)
    first = sample(tmp_path / "a", rows, "--segments", 200)
    again = sample(tmp_path / "b", rows, "--segments", 200)
    systems = [item["systems"] for item in first["items"].values()]
    assert [item["systems"] for item in again["items"].values()] == systems
    assert again["sample"] == first["sample"]
    assert sample(tmp_path / "c", rows, "--segments", 200, "--seed", 1)["sample"] != first["sample"]
    counts = Counter(item["direction"] for item in first["items"].values())
    assert counts == {"en-de": 100, "de-en": 100}
    assert 70 < sum(letters["A"] == "ours" for letters in systems) < 130


def test_annotators_see_no_name_of_a_system(tmp_path: Path) -> None:
    rows = rows_of("en-de", 3)
    for row in rows:
        row["candidates"] = {f"SYSTEM-{k}": v for k, v in row["candidates"].items()}
    sample(tmp_path, rows, "--spans", "none")
    files = [path for path in (tmp_path / "tasks").rglob("*") if path.is_file()]
    assert len(files) == 4
    for path in files:
        assert "SYSTEM-" not in path.read_text(encoding="utf-8"), path


def test_spans_count_in_utf16_with_the_last_unit_included(tmp_path: Path) -> None:
    assert utf16_span("🙂 a bad", Span(4, 7, "major")) == (5, 7)
    key = sample(tmp_path, rows_of("en-de", 2))
    (campaign,) = load(tmp_path / "tasks" / "pearmut.json")
    ((item,), _), *_ = campaign["data"]
    letter = next(k for k, v in key["items"][item["item_id"]]["systems"].items() if v == "base")
    # In characters 5 to 8 with the space at the start, which is cut off: 4 to 7.
    span = {"start_i": 5, "end_i": 7, "severity": "major", "category": None}
    assert item["error_spans"] == {letter: [span], {"A": "B", "B": "A"}[letter]: []}
    assert item["tgt"][letter].encode("utf-16-le")[10:16].decode("utf-16-le") == "bad"


def test_tasks_of_appraise_are_full_and_hold_texts_as_they_are(tmp_path: Path) -> None:
    sample(tmp_path, rows_of("en-de", 60), "--annotators", 2)
    tasks = load(tmp_path / "tasks" / "appraise" / "en-de" / "batches.json")
    assert [len(task["items"]) for task in tasks] == [100, 100]
    items = [item for task in tasks for item in task["items"]]
    assert Counter(item["itemType"] for item in items) == {"TGT": 120, "CHK": 80}
    assert len({(item["documentID"], item["targetID"]) for item in items}) == 200
    assert SCRIPT in items[0]["sourceText"], "Appraise escapes it"
    manifest = load(tmp_path / "tasks" / "appraise" / "en-de" / "manifest.json")
    assert manifest["TASKS_TO_ANNOTATORS"] == [["eng", "deu", "uniform", 2, 2]]
    assert re.fullmatch("[a-zA-Z0-9]+", manifest["CAMPAIGN_NAME"]), "a part of its addresses"
    assert (manifest["TASK_TYPE"], manifest["TASK_OPTIONS"]) == ("Document", "ESA")


def test_an_empty_translation_is_judged_and_other_rows_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of("en-de", 5)
    rows[0]["candidates"]["base"] = " "
    rows[1]["candidates"].pop("base")
    rows[2]["candidates"]["ours"] = "<img src=x>"
    rows[3]["source"] = rows[4]["source"]
    key = sample(tmp_path, rows)
    assert len(key["items"]) == 2
    assert '"[empty]"' in (tmp_path / "tasks" / "pearmut.json").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    for reason in ("no translation by one of the systems: 1", "HTML: 1", "of an earlier row: 1"):
        assert reason in said
    assert "empty candidate" not in said


def test_the_key_of_another_sample_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = sample(tmp_path, rows_of("en-de", 4))
    assert sample(tmp_path, rows_of("en-de", 4)) == key
    path = write(tmp_path / "rows.jsonl", rows_of("en-de", 5))
    arguments = ("sample", "--input", path, "--output", tmp_path / "tasks")
    assert evaluate_human(*arguments) == 2
    assert "tasks.key.json is the key of another sample" in capsys.readouterr().err
    assert load(tmp_path / "tasks.key.json") == key
    assert evaluate_human(*arguments, "--key", path) == 2
    assert load(tmp_path / "tasks.key.json") == key and len(path.read_text().splitlines()) == 5


def test_wrong_options_and_rows_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of("en-de", 2)

    def said(rows: list[Any], *options: object) -> str:
        return refused(capsys, tmp_path, rows, *options)

    assert "did you mean ours" in said(rows, "--system", "our", "--system", "base")
    assert "twice" in said(rows, "--system", "base", "--system", "base")
    assert "compare 2 to 26 systems, and there are 1" in said(rows, "--system", "base")
    assert "known: xcomet" in said(rows, "--spans", "xcmet")
    assert "above 0" in said(rows, "--segments", 0)
    both = ("--system", "reference", "--system", "ours", "--show-reference")
    assert "would show the answer" in said(rows, *both)
    assert "must not see it" in said(rows, "--key", tmp_path / "tasks" / "key.json")
    rows[0]["error_spans"]["kiwi"] = {}
    assert "by kiwi and xcomet; choose one" in said(rows)
    rows[0]["error_spans"] = {"xcomet": {"base": [{"start": "x"}]}}
    assert "rows.jsonl, line 1: field error_spans.xcomet.base" in said(rows)
    assert "no row can be drawn of 2 (no translation by one" in said(
        [{**row, "candidates": {str(n): "text"}} for n, row in enumerate(rows)], "--spans", "none"
    )
