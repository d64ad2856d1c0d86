"""Results that are kept while a command goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ds.errors import UserError
from cpo_ds.scoring.plan import Item
from cpo_ds.storage.results import ResultFiles, content_key


def test_a_key_changes_with_every_content() -> None:
    keys = {content_key("a", "b", None), content_key("ab", "", None), content_key("a", "b", "")}
    keys |= {content_key("b", "a", None), Item("a", "b", None, "en-de").key}
    assert len(keys) == 5 and all(len(key) == 32 for key in keys)


@given(cut=st.integers(0, 200), torn=st.booleans())
@settings(max_examples=40, deadline=None)
def test_parts_survive_a_line_that_was_cut_off(
    tmp_path_factory: pytest.TempPathFactory, cut: int, torn: bool
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    first, second = ResultFiles(folder, "metric", 0), ResultFiles(folder, "metric", 1)
    first.add({"a": [1.0], "b": [2.5]})
    second.add({"c": [0.1, [{"text": "ü\u2028"}]]})
    file = folder / "metric.0.jsonl"
    if torn:
        file.write_bytes(file.read_bytes()[:cut])
    expected = {"c": [0.1, [{"text": "ü\u2028"}]]}
    whole = not torn or cut >= len('\n{"a": [1.0], "b": [2.5]}')
    assert first.read() == expected | ({"a": [1.0], "b": [2.5]} if whole else {})
    ResultFiles(folder, "metric", 0).add({"d": [4.0]})
    assert second.read()["d"] == [4.0] and second.read()["c"] == expected["c"]
    assert ResultFiles(folder, "other").read() == {}


def test_parts_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="finished work is kept"):
        ResultFiles(tmp_path / "file" / "x", "metric").add({"a": 1})


@pytest.mark.parametrize("line", ["[]", '["ab"]', "1", "null", '"a"', "[" * 100_000])
def test_lines_that_are_no_objects_are_skipped(tmp_path: Path, line: str) -> None:
    results = ResultFiles(tmp_path, "metric")
    results.add({"a": 1})
    with (tmp_path / "metric.0.jsonl").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    assert results.read() == {"a": 1}
