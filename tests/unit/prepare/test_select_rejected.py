"""`cpo-ds prepare select --rejected`: several rejected translations of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preference_data import read
from scored_rows import refused, run, scored

from cpo_ds import cli
from cpo_ds.data.rows import read_rows
from cpo_ds.prepare.pairs.choose import worse_names
from cpo_ds.settings.data import DataConfig

SCORES = {"reference": 0.9, "a": 0.7, "b": 0.1, "c": 0.5}
ROW = scored(SCORES)


def rejected(folder: Path, *options: Any, row: Any = ROW) -> list[list[str]]:
    pairs, _ = run(folder, [row], *options)
    return [pair["rejected_system"] for pair in pairs]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("worst", ["b"]), ("all", ["b", "c", "a"]), ("2", ["b", "c"]), ("9", ["b", "c", "a"])],
)
def test_which_are_rejected(tmp_path: Path, rule: str, expected: list[str]) -> None:
    assert rejected(tmp_path, "--rejected", rule) == [expected]


def test_spread_takes_the_worst_the_best_and_one_between() -> None:
    means = {"best": 1.0} | {str(n): n / 10 for n in range(9)}
    assert worse_names(means, "best", "spread") == ["0", "4", "8"]
    assert worse_names(means, "best", "spread", least_margin=0.5) == ["0", "2", "5"]
    assert worse_names({"best": 1.0, "x": 0.5, "y": 0.2}, "best", "spread") == ["y", "x"]


def test_margins_and_ties(tmp_path: Path) -> None:
    assert rejected(tmp_path, "--rejected", "all", "--min-margin", 0.3) == [["b", "c"]]
    tied = scored({"reference": 0.9, "a": 0.9, "b": 0.1, "c": 0.1})
    assert rejected(tmp_path, "--rejected", "all", row=tied) == [["b", "c"]]
    near = scored({"reference": 0.9, "a": 0.8, "b": 0.82, "c": 0.85}, source="Good night.")
    pairs, summary = run(tmp_path, [near, ROW], "--rejected", "all", "--min-margin", 0.15)
    assert [pair["rejected_system"] for pair in pairs] == [["b", "c", "a"]]
    assert list(summary["dropped"].values()) == [1] and "margin" in next(iter(summary["dropped"]))


def test_the_lines_are_read_by_the_trainer(tmp_path: Path) -> None:
    pairs, summary = run(tmp_path, [ROW, ROW], "--rejected", "all")
    assert [len(pair["rejected"]) for pair in pairs] == [3]  # the second row is a duplicate
    assert pairs[0]["margin"] == pytest.approx([0.8, 0.4, 0.2])
    assert summary["lines"] == 1 and summary["pairs"] == {"en-de": 3}
    rows, _ = read(tmp_path / "out" / "pairs.jsonl", "pairs")
    assert [list(row.rejected) for row in rows] == [pairs[0]["rejected"]]


def test_the_scores_that_selected_are_written_and_read(tmp_path: Path) -> None:
    human = ROW | {"preference": {"chosen": "b", "rejected": "a"}, "source": "Hi there."}
    pairs, _ = run(tmp_path, [ROW, human], "--rejected", "all")
    means = {name: pytest.approx(score) for name, score in SCORES.items()}
    for pair in pairs:
        assert pair["chosen_score"] == means[pair["chosen_system"]]
        assert pair["rejected_score"] == [means[name] for name in pair["rejected_system"]]
        margins = [pair["chosen_score"] - score for score in pair["rejected_score"]]
        assert pair["margin"] == pytest.approx(margins)
    # The person prefers a text with a lower score, which is no order that scores give.
    data = DataConfig(format="pairs", path=str(tmp_path / "out" / "pairs.jsonl"))
    rows, report = read_rows(data, None, with_scores=True)
    assert [row.scores for row in rows] == [
        pytest.approx((pairs[0]["chosen_score"], *pairs[0]["rejected_score"]), rel=1e-6)
    ]
    assert report.dropped == {"a rejected completion scores above the chosen one": 1}


def test_unrolled_lines_are_those_of_best_each(tmp_path: Path) -> None:
    unrolled, _ = run(tmp_path, [ROW], "--rejected", "all", "--unroll")
    each, _ = run(tmp_path, [ROW], "--pairs", "best-each")
    assert sorted(map(str, unrolled)) == sorted(map(str, each)) and len(each) == 3


@pytest.mark.parametrize("rule", ["most", "0", "-1", "1.5"])
def test_a_wrong_rule_is_told(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "select", "--input", "x", "--output", "y", f"--rejected={rule}"]
    assert cli.main(command) == 2
    assert "give worst, all, spread, or a number of translations" in capsys.readouterr().err


def test_options_that_exclude_or_need_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--rejected", "all", "--pairs", "best-each")
    assert "give --pairs or --rejected, not both" in refused(capsys, tmp_path, [ROW], *both)
    assert "--unroll needs --rejected" in refused(capsys, tmp_path, [ROW], "--unroll")
