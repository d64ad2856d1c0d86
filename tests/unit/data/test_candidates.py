"""Rows of candidates: what is left out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from candidate_rows import ROW, rows_file

from cpo_ds.data.candidates import read_candidates
from cpo_ds.errors import UserError


def test_blank_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    path = rows_file(
        tmp_path,
        ROW | {"id": 7},
        ROW | {"source": " "},
        ROW | {"reference": "", "candidates": {"a": "\t", "b": None, "c": "y"}},
        {"language_pair": "en-de", "source": "s"},
    )
    with path.open("a") as file:
        file.write("\n")
    rows, skipped = read_candidates(str(path))
    assert [row.translations for row in rows] == [{"reference": "r", "a": "x"}, {"c": "y"}, {}]
    assert rows[0].values["id"] == 7
    assert skipped == {
        "empty source": 1, "empty reference": 1, "empty candidate": 1, "blank line": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    "row, said",
    [
        (ROW | {"language_pair": "en_xx"}, "line 1: field language_pair has an unknown direction"),
        (ROW | {"source": 3}, "line 1: field source is not a string"),
        (ROW | {"candidates": {"a": 3}}, "line 1: field candidates.a is not a string"),
        (ROW | {"candidates": {"reference": "x"}}, "has the name of the row's reference"),
        (ROW | {"candidates": ["x"]}, "line 1: field candidates is not an object"),
        ({"source": "s"}, "line 1: field language_pair is missing"),
        (ROW | {"source": ""}, "has no row with a source"),
    ],
)
def test_rows_that_are_not_as_they_should_are_refused(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_candidates(str(rows_file(tmp_path, row)))
