"""The metrics that `cpo-ds prepare select` uses by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preference_data import write, write_parquet

from cpo_ds import cli

TEXTS = {"a": "Guten Morgen!", "b": "Gute Morgen.", "c": "Morgen."}
HUMAN = {"chosen": "b", "rejected": "a"}


def row(number: int = 0, **scores: dict[str, float | None]) -> dict[str, Any]:
    """An English-German row with scores by metric; without any, a is best and b worst."""
    return {
        "language_pair": "en-de",
        "source": f"Good morning {number}.",
        "reference": "Guten Morgen.",
        "candidates": TEXTS,
        "scores": {name.replace("_", "-"): values for name, values in scores.items()},
    }


def rows(count: int, **scores: dict[str, float | None]) -> list[dict[str, Any]]:
    return [row(number, **scores) for number in range(count)]


UNIT = {"a": 0.9, "b": 0.1, "c": 0.5}  # as COMET scores
PERCENT = {"a": 10.0, "b": 90.0, "c": 50.0}  # as chrF does, and the other way round


def run(folder: Path, lines: list[Any], *options: str) -> tuple[str, dict[str, Any]]:
    """Selects; returns "chosen>rejected" of the first pair and the summary."""
    path, output = write(folder / "scored.jsonl", lines), folder / "pairs"
    return run_on(path, output, *options)


def run_on(path: Path, output: Path, *options: str) -> tuple[str, dict[str, Any]]:
    arguments = ["prepare", "select", "--input", str(path), "--output", str(output), *options]
    assert cli.main(arguments) == 0
    first = json.loads((output / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return f"{first['chosen_system']}>{first['rejected_system']}", summary


def refused(capsys: pytest.CaptureFixture[str], folder: Path, lines: list[Any]) -> str:
    path = write(folder / "scored.jsonl", lines)
    arguments = ["prepare", "select", "--input", str(path), "--output", str(folder / "pairs")]
    assert cli.main(arguments) == 2 and not (folder / "pairs").exists()
    said = capsys.readouterr().err
    assert said.startswith("cpo_ds: error: ") and said.count("\n") == 1
    return said


# What select takes without --metrics.


def test_without_the_usual_two_those_that_all_rows_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"a": 0.2, "b": 0.3, "c": 0.9}
    lines = rows(3, kiwi=UNIT, kiwi_22=UNIT, comet_22=other, chrf=PERCENT, bleu=PERCENT)
    del lines[1]["scores"]["kiwi"]
    picked, summary = run(tmp_path, lines)
    assert picked == "c>b"  # means .55, .2, .7
    assert summary["metrics"] == ["kiwi-22", "comet-22"]
    assert summary["options"]["metrics"] is None
    assert summary["metrics_because"] == "all 3 rows have scores by them"
    scale = "from 0 to 100, not to be averaged with scores from 0 to 1"
    assert summary["metrics_left_out"] == {
        "kiwi": "scores in 2 of 3 rows", "chrf": scale, "bleu": scale,
    }  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert printed[:5] == [
        "read 3 rows, selected 3 pairs by kiwi-22 + comet-22",
        "  metrics taken: kiwi-22 + comet-22, as all 3 rows have scores by them",
        "  metric left out, kiwi: scores in 2 of 3 rows",
        f"  metric left out, chrf: {scale}",
        f"  metric left out, bleu: {scale}",
    ]
    assert summary["scorer"] == "kiwi-22_comet-22" and summary["unscored_translations"] == 3


def test_metrics_of_strings_alone_are_averaged(tmp_path: Path) -> None:
    likeness = {"reference": 100.0} | PERCENT
    picked, summary = run(tmp_path, rows(2, chrf=likeness, bleu=likeness))
    assert picked == "b>a" and summary["metrics"] == ["chrf", "bleu"]
    assert summary["metrics_left_out"] == {} and summary["references_left_out"] == 2


def test_a_metric_of_strings_is_known_by_its_record_under_any_name(tmp_path: Path) -> None:
    lines = rows(2, mine=PERCENT, kiwi=UNIT)
    for line in lines:
        line["scorers"] = {"mine": {"model": "chrf", "uses_reference": True}}
    picked, summary = run(tmp_path, lines)
    assert picked == "a>b" and summary["metrics"] == ["kiwi"]
    assert list(summary["metrics_left_out"]) == ["mine"]


@pytest.mark.parametrize(
    ("kiwi", "xcomet"),
    [("kiwi", "xcomet"), ("Unbabel/wmt23-cometkiwi-da-xxl", "XCOMET-XXL"), ("kiwi-xxl", "xcomet")],
)
def test_the_usual_two_are_taken_also_where_rows_lack_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kiwi: str, xcomet: str
) -> None:
    both = {kiwi: UNIT, xcomet: UNIT, "chrf": PERCENT, "kiwi_xcomet": PERCENT}
    lines = [row(number) | {"scores": both} for number in range(3)]
    lines[1]["scores"] = {kiwi: UNIT, "chrf": PERCENT}
    picked, summary = run(tmp_path, lines)
    assert picked == "a>b" and summary["metrics"] == [kiwi, xcomet]
    assert summary["dropped"] == {"fewer than two scored translations": 1}
    assert summary["unscored_translations"] == 2 * 1 + 4
    assert summary["metrics_because"] is None and summary["metrics_left_out"] == {}
    assert "metrics taken" not in capsys.readouterr().out


@pytest.mark.parametrize("mean", ["kiwi_xcomet", "kiwi+xcomet", "xcomet-kiwi"])
def test_their_stored_mean_is_taken_too(tmp_path: Path, mean: str) -> None:
    lines = [row(n) | {"scores": {"chrf": PERCENT, mean: UNIT, "kiwi": PERCENT}} for n in range(3)]
    del lines[2]["scores"][mean]
    picked, summary = run(tmp_path, lines)
    assert picked == "a>b" and summary["metrics"] == [mean]
    assert summary["dropped"] == {"fewer than two scored translations": 1}


def test_two_names_of_one_metric_count_once(tmp_path: Path) -> None:
    lines = [row(n) | {"scores": {"kiwi-xxl": UNIT, "kiwi": UNIT}} for n in range(2)]
    _, summary = run(tmp_path, lines)
    assert summary["metrics"] == ["kiwi-xxl"]
    assert summary["metrics_left_out"] == {"kiwi": "the same metric as kiwi-xxl"}


def test_rows_that_need_no_scores_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        *rows(2, chrf=PERCENT),
        row(2) | {"preference": HUMAN},
        row(3) | {"candidates": {"a": "A"}, "reference": None},
        row(4) | {"candidates": {"a": " "}},
    ]
    _, summary = run(tmp_path, lines)
    assert summary["metrics"] == ["chrf"] and summary["human_preferences"] == 1
    assert summary["metrics_because"] == "all 2 rows that need scores have some by it"
    del lines[2]["preference"]
    assert "chrf in 2" in refused(capsys, tmp_path / "2", lines)


def test_where_people_chose_everywhere_no_scores_are_needed(tmp_path: Path) -> None:
    lines = [line | {"preference": HUMAN} for line in rows(2, kiwi=UNIT)]
    picked, summary = run(tmp_path, lines)
    assert picked == "b>a" and summary["metrics"] == ["kiwi"]
    del lines[1]["scores"]["kiwi"]
    picked, summary = run(tmp_path, lines)
    assert picked == "b>a" and summary["metrics"] == []


def test_only_the_directions_selected_count(tmp_path: Path) -> None:
    lines = [*rows(2, chrf=PERCENT), *rows(2, kiwi=UNIT, xcomet=UNIT)]
    for line in lines[2:]:
        line["language_pair"] = "en-cs"
    for direction, metrics in (("en-de", ["chrf"]), ("en-cs", ["kiwi", "xcomet"])):
        assert run(tmp_path, lines, "--directions", direction)[1]["metrics"] == metrics
    assert run(tmp_path, lines)[1]["metrics"] == ["kiwi", "xcomet"]


def test_nulls_and_empty_objects_are_no_scores(tmp_path: Path) -> None:
    """Nulls come from parquet, empty objects from rows without a reference."""
    lines = rows(3, kiwi={"a": None}, xcomet={}, chrf=PERCENT)
    picked, summary = run(tmp_path, lines)
    assert picked == "b>a" and summary["metrics"] == ["chrf"]
    assert summary["metrics_left_out"] == {}
    lines = rows(3, chrf=PERCENT)
    lines[0]["scores"]["bleu"] = {"a": 1.0}
    path = write_parquet(tmp_path / "scored.parquet", lines)
    _, summary = run_on(path, tmp_path / "parquet")
    assert summary["metrics"] == ["chrf"]
    assert summary["metrics_left_out"] == {"bleu": "scores in 1 of 3 rows"}


def test_where_no_metric_is_in_all_rows_it_says_which_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = rows(4, chrf=PERCENT, kiwi_22=UNIT)
    lines[0]["scores"]["chrf"] = {"reference": 100.0}  # its candidates came later
    del lines[1]["scores"]["kiwi-22"], lines[2]["scores"]["kiwi-22"]
    assert refused(capsys, tmp_path, lines) == (
        "cpo_ds: error: no metric has scores in all of the 4 rows that need them (chrf in 3, "
        "kiwi-22 in 2); choose by --metrics, several joined by +, or score all rows by one.\n"
    )
    said = refused(capsys, tmp_path, rows(2, chrf={"a": None}))
    assert "no row of --input has scores; make some with `cpo-ds prepare score`" in said


def test_metrics_that_are_named_are_taken_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = rows(2, kiwi=UNIT, chrf=PERCENT)
    del lines[1]["scores"]["kiwi"]
    picked, summary = run(tmp_path, lines, "--metrics", "kiwi+chrf")
    assert picked == "b>a" and summary["metrics"] == ["kiwi", "chrf"]
    assert summary["options"]["metrics"] == "kiwi+chrf" and summary["metrics_because"] is None
    assert "metrics taken" not in capsys.readouterr().out
    path = tmp_path / "scored.jsonl"
    arguments = ["prepare", "select", "--input", str(path), "--output", str(tmp_path / "new")]
    assert cli.main([*arguments, "--metrics", "kiwi+xcomet"]) == 2
    assert "no row has a score by 'xcomet'" in capsys.readouterr().err
