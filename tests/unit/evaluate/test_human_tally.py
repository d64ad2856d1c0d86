"""The tally of human judgements: numbers known from publications, and results of three tools."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from human_rows import evaluate_human, rows_of, sample, tally

from cpo_ds.evaluate.human.agreement import krippendorff_alpha, preference_agreement
from cpo_ds.evaluate.human.tally import ranks_of, win_ratios


def saved(key: Any, scores: dict[str, int], annotator: str = "ann", **changes: Any) -> Any:
    """A file as the page saves it, with a score for each system."""
    judgements = [
        {"item": item, "letter": letter, "score": scores[system], "errors": [], "missing": None}
        for item, values in key["items"].items()
        for letter, system in values["systems"].items()
    ]
    common = {"format": "cpo_ds judgements 1", "sample": key["sample"], "annotator": annotator}
    return {**common, "judgements": judgements, **changes}


def put(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_alpha_is_that_of_krippendorffs_example() -> None:
    units = [
        [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
        [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
    ]  # fmt: skip
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha([[1, 1], [2, 2]]) == 1
    assert krippendorff_alpha([[1], [2]]) is None and krippendorff_alpha([[1, 1]]) is None


def test_ties_share_a_rank_and_count_as_wins_for_both() -> None:
    assert ranks_of([50, 80, 80, 10]) == [3, 1.5, 1.5, 4]
    assert win_ratios([50, 80, 80, 10]) == [1 / 3, 1, 1, 0]
    assert win_ratios([5, 5]) == [1, 1]
    scores = [{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 20.0}, {"a": 3.0, "b": 3.0}]
    assert preference_agreement([scores]) == (1, 3)


def test_the_win_ratios_of_alma_r_come_from_150_wins_161_ties_and_89_losses(
    tmp_path: Path,
) -> None:
    """400 examples, 77.8% against 62.5%, which only ties for both can give."""
    key = sample(tmp_path, rows_of("zh-en", 400), "--spans", "none")
    results = saved(key, {"ours": 5, "base": 5})
    for number, judgement in enumerate(results["judgements"]):
        system = key["items"][judgement["item"]]["systems"][judgement["letter"]]
        judgement["score"] += (number // 2 < 150 and system == "ours") + (
            number // 2 >= 311 and system == "base"
        )
    numbers = tally(tmp_path, put(tmp_path / "r.json", results))
    ours, base = sorted(numbers["results"], key=lambda one: one["system"] != "ours")
    assert round(100 * ours["win_ratio"]["mean"], 2) == 77.75
    assert round(100 * base["win_ratio"]["mean"], 2) == 62.5
    assert ours["rank"]["mean"] + base["rank"]["mean"] == pytest.approx(3)
    (comparison,) = numbers["comparisons"]
    assert sorted(comparison[name] for name in ("wins", "ties", "losses")) == [89, 150, 161]
    # A normal approximation of the interval: 1.96 standard errors of the mean difference.
    difference = comparison["difference"]
    assert abs(difference["mean"]) == pytest.approx(61 / 400)
    half = 1.96 * ((239 / 400 - (61 / 400) ** 2) / 400) ** 0.5
    assert difference["high"] - difference["low"] == pytest.approx(2 * half, rel=0.1)
    again = tally(tmp_path, tmp_path / "r.json")
    assert again == numbers


def test_two_annotators_of_an_item_count_once_and_their_agreement_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = sample(tmp_path, rows_of("en-de", 3) + rows_of("en-cs", 2))
    one = put(tmp_path / "1.json", saved(key, {"ours": 90, "base": 50}))
    two = put(tmp_path / "2.json", saved(key, {"ours": 70, "base": 70}, "bo"))
    numbers = tally(tmp_path, one, two, options=("--markdown", tmp_path / "t.md"))
    assert {one["direction"] for one in numbers["results"]} == {"en-de", "en-cs", "all"}
    ours = numbers["results"][0]
    assert (ours["system"], ours["score"]["mean"], ours["rank"]["mean"]) == ("ours", 80, 1.25)
    assert ours["win_ratio"]["mean"] == 1 and ours["items"] == 2
    assert numbers["agreement"][-1]["equal_preferences"] == 0
    assert numbers["items_of_annotators"] == {"ann": 5, "bo": 5}
    assert "| en-de | ours | 3 | 80.0 [80.0, 80.0] | 1.25 [1.25, 1.25] | 100.0%" in (
        tmp_path / "t.md"
    ).read_text(encoding="utf-8")
    assert "Agreement between annotators" in capsys.readouterr().out


def test_scores_of_appraise_are_read(tmp_path: Path) -> None:
    key = sample(tmp_path, rows_of("en-de", 2))
    spans = json.dumps([{"start_i": 1, "end_i": 2, "severity": "minor"}])
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        lines = csv.writer(file, quoting=csv.QUOTE_MINIMAL)
        for item, values in key["items"].items():
            for letter, system in values["systems"].items():
                row = ["engdeu01", f"{item}-{letter}", 1, "TGT", "eng", "deu"]
                score = 71 if system == "ours" else 40
                lines.writerow([*row, score, f"{item}-{letter}", False, spans, 1.5, 2.5])
        lines.writerow(["engdeu01", "x", 1, "BAD", "eng", "deu", 1, "x", False, "[]", 1, 2])
    ours, base = tally(tmp_path, tmp_path / "scores.csv")["results"]
    assert (ours["score"]["mean"], base["score"]["mean"], base["minor"]["mean"]) == (71, 40, 1)


def test_pearmuts_resets_and_corrections_are_honoured(tmp_path: Path) -> None:
    key = sample(tmp_path, rows_of("en-de", 1))
    ((item, values),) = key["items"].items()

    def line(user: str, ours: float, **changes: Any) -> str:
        scores = {"ours": ours, "base": 10}
        answer = {k: {"score": scores[v], "error_spans": []} for k, v in values["systems"].items()}
        entry = {"user_id": user, "item_i": 0, "item": [{"item_id": item}], "annotation": [answer]}
        return json.dumps(entry | changes) + "\n"

    reset = line("a", 0, annotation="__RESET__", item=None)
    tutorial = line("a", 0, item_i="welcome_0", item=[{"item_id": "other"}])
    text = line("a", 1) + reset + tutorial + line("a", 50) + line("a", 60) + line("b", 80)
    numbers = tally(tmp_path, put(tmp_path / "log.jsonl", text))
    assert numbers["results"][0]["score"]["mean"] == 70
    export = {f"{key['sample']}-en-de": [json.loads(row) for row in text.splitlines()], "other": []}
    assert tally(tmp_path, put(tmp_path / "annotations.json", export)) == numbers


def test_wrong_results_are_refused_in_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = sample(tmp_path, rows_of("en-de", 2))
    path = tmp_path / "r.json"
    key_file = tmp_path / "tasks.key.json"

    def said(content: Any, name: Path = path, *options: object) -> str:
        put(name, content)
        arguments = ("tally", "--key", key_file, "--results", name, *options)
        assert evaluate_human(*arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("cpo_ds: error: ") and message.count("\n") == 1
        return message

    scores = {"ours": 90, "base": 50}
    good = saved(key, scores)
    judgements = good["judgements"]
    assert "is empty" in said("")
    assert "not valid JSON" in said(json.dumps(good)[:-9])
    assert "columns, and Appraise's scores have 12" in said("a,b\n")
    assert "not a file of results" in said({"a": 1})
    assert "is of the sample 123" in said(saved(key, scores, sample="123"))
    assert "judgement 1: not as the page saves it" in said({**good, "judgements": [{}]})
    for score in (101, "90", None, True):
        wrong = [{**judgements[0], "score": score}, *judgements[1:]]
        assert "scores are numbers from 0 to 100" in said({**good, "judgements": wrong})
    other = [{**judgements[0], "letter": "C"}]
    assert "is not in the sample" in said({**good, "judgements": other})
    assert "judged by nobody: 1 of 2 items" in said({**good, "judgements": judgements[:2]})
    assert "judged in part: 1 (the first" in said({**good, "judgements": judgements[:3]})
    assert "no judgement" in said({**good, "judgements": []})
    assert "not complete" in said({**good, "judgements": judgements[:1]}, path, "--partial")
    assert "not a line of Pearmut's log" in said('{"a": 1}\n', tmp_path / "log.jsonl")
    key_file = put(tmp_path / "other.json", {"a": 1})
    assert "is no key" in said(good)
    key_file = tmp_path / "none.json"
    assert "cannot be read" in said(good)
