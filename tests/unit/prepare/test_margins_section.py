"""The margins in the report on scores: pairs left at each cut as `select` leaves them, and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preference_data import write
from report_page import Page, report, row, rows

from cpo_ds import cli
from cpo_ds.prepare.analyses.margins_section import margins_section
from cpo_ds.prepare.analyses.scored import read_scored
from cpo_ds.prepare.analyses.view import make_view, selecting_metrics
from cpo_ds.report.page import render


def scored(number: int, best: float, worst: float, **values: Any) -> dict[str, Any]:
    """A row whose candidates a and b have these scores by kiwi, around the reference's."""
    scores = {"kiwi": {"reference": (best + worst) / 2, "a": best, "b": worst}}
    return row("en-de", ["a", "b"], ["kiwi"], number, scores=scores, **values)


def margins_of(path: Path) -> Page:
    """The section alone, as a page: the other sections draw for seconds."""
    data = read_scored(str(path))
    return Page(
        render("margins", (margins_section(make_view(data, selecting_metrics(data, None))),))
    )


def test_pairs_left_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [scored(i, 0.5 + margin, 0.5) for i, margin in enumerate((0.4, 0.3, 0.2, 0.1))]
    lines.append(scored(9, 0.5, 0.5))  # equal scores give no pair
    page = report(tmp_path, lines)
    assert "Half of 4 pairs have a margin of 0.25" in capsys.readouterr().out
    left = {line[0]: line[1:] for line in page.lines if len(line) == 3}
    assert left["0"] == ["4", "100.0%"] and left["0.1"] == ["4", "100.0%"]
    assert left["0.2"] == ["3", "75.0%"] and left["0.3"] == ["2", "50.0%"]
    # So few rows are all shown, the largest margin first.
    assert "All rows, the largest margin first." in page.text
    sources = [page.text.index(f"source {number}\n") for number in range(4)]
    assert sources == sorted(sources) and "source 9\n" not in page.text


def test_cuts_leave_the_pairs_that_select_leaves(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.jsonl", rows(60))
    page = margins_of(path)
    cuts = [line for line in page.lines if len(line) == 3 and line[2].endswith("%")]
    assert len(cuts) > 3
    for number, (cut, left, _) in enumerate(cuts):
        output = tmp_path / f"pairs-{number}"
        options = ["--input", str(path), "--output", str(output), "--min-margin", cut]
        assert cli.main(["prepare", "select", *options]) == 0
        assert str(len((output / "pairs.jsonl").read_text().splitlines())) == left


def test_rows_of_each_kind_are_shown_with_their_texts(tmp_path: Path) -> None:
    lines = [scored(i, 0.1 + i / 100, 0.1) for i in range(1, 50)]
    lines[10]["source"] = lines[48]["source"] = "<script>alert(1)</script>"
    page = margins_of(write(tmp_path / "scored.jsonl", lines))
    largest, middle = page.text.index("largest margins"), page.text.index("in the middle")
    smallest = page.text.index("smallest margins")
    assert "<script>alert(1)</script>" in page.text[largest:middle]
    assert "source 25" in page.text[middle:smallest] and "source 1\n" in page.text[smallest:]


def test_a_person_s_choice_has_no_margin(tmp_path: Path) -> None:
    preference = {"chosen": "b", "rejected": "a"}
    lines = [scored(1, 0.9, 0.1, preference=preference), scored(2, 0.6, 0.4)]
    page = margins_of(write(tmp_path / "scored.jsonl", lines))
    assert "Half of 1 pair have a margin of 0.2" in page.text
    assert "Pairs that a person decided have no margin here: 1." in page.text


def test_rows_without_a_choice_have_no_margins(tmp_path: Path) -> None:
    path = write(tmp_path / "scored.jsonl", [scored(1, 0.5, 0.5)])
    assert "so there are no margins" in margins_of(path).text
