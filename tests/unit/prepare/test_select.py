"""`cpo-ds prepare select`: which pair of translations is chosen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from preference_data import read
from repository import ROOT
from scored_rows import TEXTS, names, run, scored

# What is chosen.


def test_best_against_worst_by_the_mean(tmp_path: Path) -> None:
    kiwi = {"reference": 0.9, "a": 0.8, "b": 0.1, "c": 0.5}
    xcomet = {"reference": 0.5, "a": 0.9, "b": 0.4, "c": 0.2}  # means .7, .85, .25, .35
    pairs, summary = run(tmp_path, [scored(kiwi, xcomet)])
    assert pairs == [
        {
            "prompt": "Translate this from English to German:\nEnglish: Good morning.\nGerman:",
            "chosen": "Guten Morgen!",
            "rejected": "Gute Morgen.",
            "direction": "en-de",
            "chosen_system": "a",
            "rejected_system": "b",
            "chosen_score": pytest.approx(0.85),
            "rejected_score": pytest.approx(0.25),
            "margin": pytest.approx(0.6),
            "selected_by": ["kiwi", "xcomet"],
        }
    ]
    assert summary["metrics"] == ["kiwi", "xcomet"] and summary["scorer"] == "kiwi_xcomet"
    assert summary["chosen"] == {"en-de": {"a": 1}} and summary["rejected"] == {"en-de": {"b": 1}}
    assert names(tmp_path, [scored(kiwi, xcomet)], "--metrics", "xcomet") == [("a", "c")]
    assert names(tmp_path, [scored(kiwi, xcomet)], "--metrics", "kiwi") == [("reference", "b")]


def test_best_against_each(tmp_path: Path) -> None:
    row = scored({"reference": 0.2, "a": 0.9, "b": 0.1, "c": 0.9})
    pairs, summary = run(tmp_path, [row], "--pairs", "best-each")
    picked = [(p["chosen_system"], p["rejected_system"], p["margin"]) for p in pairs]
    assert picked == [("a", "reference", pytest.approx(0.7)), ("a", "b", pytest.approx(0.8))]
    assert summary["dropped"] == {"equal scores": 1}  # c is as good as a


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"reference": 0.9, "a": 0.9, "b": 0.1, "c": 0.1}, ("reference", "b")),
        ({"reference": 0.1, "a": 0.1, "b": 0.9, "c": 0.9}, ("b", "reference")),
        ({"reference": 0.5, "c": 0.9, "b": 0.9, "a": 0.1}, ("b", "a")),  # in the row's order
    ],
)
def test_of_equal_scores_the_first_counts(
    tmp_path: Path, scores: dict[str, float], expected: tuple[str, str]
) -> None:
    assert names(tmp_path, [scored(scores)]) == [expected]


@pytest.mark.parametrize(
    ("kiwi", "xcomet"),
    [
        ("kiwi-xxl", "XCOMET-XXL"),
        ("wmt23-cometkiwi-da-xxl", "xcomet-xxl"),
        ("Unbabel/wmt23-cometkiwi-da-xxl", "Unbabel/XCOMET-XXL"),
    ],
)
def test_the_usual_metrics_under_their_usual_names(tmp_path: Path, kiwi: str, xcomet: str) -> None:
    row = scored({"a": 0.9, "b": 0.1})
    row["scores"] = {"chrf": {"a": 0, "b": 1}, kiwi: {"a": 0.9, "b": 0.1}, xcomet: {"a": 1, "b": 0}}
    pairs, summary = run(tmp_path, [row])
    assert pairs[0]["margin"] == pytest.approx(0.9)
    assert summary["metrics"] == [kiwi, xcomet] and summary["scorer"] == "kiwi_xcomet"
    assert run(tmp_path, [row], "--metrics", "xcomet+kiwi")[1]["scorer"] == "kiwi_xcomet"
    assert run(tmp_path, [row], "--metrics", "xcomet_kiwi")[1]["metrics"] == [kiwi, xcomet]


def test_a_metric_of_any_name_with_a_plus_or_a_path(tmp_path: Path) -> None:
    row = scored({"a": 0.9, "b": 0.1}) | {"scores": {"runs/a+b.ckpt": {"a": 0, "b": 1}}}
    assert names(tmp_path, [row], "--metrics", "runs/a+b.ckpt") == [("b", "a")]


def test_metrics_that_compare_with_the_reference_leave_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = scored({"reference": 1.0, "a": 0.2, "b": 0.7, "c": 0.4})
    row["scorers"] = {"kiwi": {"uses_reference": False}, "xcomet": {"uses_reference": True}}
    pairs, summary = run(tmp_path, [row])
    assert (pairs[0]["chosen_system"], pairs[0]["rejected_system"]) == ("b", "a")
    assert summary["references_left_out"] == 1 and summary["scorers"]["xcomet"] == [
        {"uses_reference": True}
    ]
    assert "  references left out, as a metric compares with them: 1\n" in capsys.readouterr().out
    assert names(tmp_path, [row], "--metrics", "kiwi") == [("reference", "a")]
    row = row | {"scores": {"chrf": row["scores"]["kiwi"]}, "scorers": None}
    assert names(tmp_path, [row], "--metrics", "chrf") == [("b", "a")]  # chrF always compares


def test_what_has_no_score_is_counted(tmp_path: Path) -> None:
    rows = [
        scored({"reference": None, "a": 0.9, "b": 0.1}, {"a": 0.9, "b": 0.1, "c": 1.0}),
        scored({"a": 0.9}),
        scored({"a": 0.7, "b": 0.1}, reference=None, candidates={"b": "B", "a": "A", "d": " "}),
    ]
    pairs, summary = run(tmp_path, rows)
    assert len(pairs) == 2
    assert summary["dropped"] == {"fewer than two scored translations": 1}
    assert summary["unscored_translations"] == 2 + 3 + 0
    assert summary["rows"] == 3 and summary["left_out"] == {"empty candidate": 1}


def test_a_person_goes_before_the_scores(tmp_path: Path) -> None:
    scores = {"reference": 0.5, "a": 0.9, "b": 0.1, "c": 0.4}
    rows = [
        scored(scores, preference={"chosen": "b", "rejected": "a"}),
        scored(scores, preference={"chosen": "reference", "rejected": "c"}, source="Hi there."),
        scored(scores, preference=None, source="Hello."),
    ]
    for pairing in ("best-worst", "best-each"):
        pairs, summary = run(tmp_path, rows, "--min-margin", 0.2, "--pairs", pairing)
        picked = [(p["chosen_system"], p["rejected_system"], p["margin"]) for p in pairs[:2]]
        assert picked == [("b", "a", pytest.approx(-0.8)), ("reference", "c", pytest.approx(0.1))]
        assert pairs[2]["chosen_system"] == "a"
        assert summary["human_preferences"] == 2
    rows = [{key: value for key, value in row.items() if key != "scores"} for row in rows[:2]]
    pairs, summary = run(tmp_path, rows)  # without any score too
    assert [p["margin"] for p in pairs] == [None, None] and summary["metrics"] == []
    assert [p["chosen_score"] or p["rejected_score"] for p in pairs] == [None, None]
    kept, _ = read(tmp_path / "out" / "alma-r", "alma-r")
    assert [(row.chosen, *row.rejected) for row in kept] == [
        (TEXTS["b"], TEXTS["a"]),
        ("Guten Morgen.", TEXTS["c"]),
    ]


def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "triplets.md").read_text(encoding="utf-8")
    row, preference, pair = map(json.loads, re.findall(r"```json\n(.*?)\n```", text, flags=re.S))
    pairs, _ = run(tmp_path, [row], "--metrics", "kiwi")
    assert pairs == [pair | {"margin": pytest.approx(pair["margin"])}]
    assert names(tmp_path, [row | preference], "--metrics", "kiwi") == [("gpt-4", "reference")]
