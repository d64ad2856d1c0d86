"""Metrics of which lower scores are better, like MetricX: they must not choose the worst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preference_data import read, write
from report_page import report
from scored_rows import TEXTS, names, run, scored

from cpo_ds.data.scorers import lower_is_better
from cpo_ds.prepare.analyses.scored import read_scored
from cpo_ds.prepare.analyses.view import selecting_metrics

ERRORS = {"a": 0.5, "b": 3.0, "c": 12.0}  # "a" is the best
SCORER = {"mine": {"model": "/models/x", "uses_reference": False, "lower_is_better": True}}


def row(metric: str, scorers: Any = None, **scores: Any) -> dict[str, Any]:
    return scored({}, scores={metric: ERRORS} | scores, scorers=scorers or {})


@pytest.mark.parametrize("metric, scorers", [("metricx-24-qe", None), ("mine", SCORER)])
def test_select_chooses_the_fewest_errors(tmp_path: Path, metric: str, scorers: Any) -> None:
    (pair,), summary = run(tmp_path, [row(metric, scorers)])
    assert (pair["chosen_system"], pair["rejected_system"]) == ("a", "c")
    assert pair["margin"] == 11.5 and summary["metrics"] == [metric]
    assert names(tmp_path, [row(metric, scorers)], "--pairs", "best-each") == [
        ("a", "b"), ("a", "c"),
    ]  # fmt: skip
    assert names(tmp_path, [row(metric, scorers)], "--min-margin", 11) == [("a", "c")]


@pytest.mark.parametrize("metric, scorers", [("metricx-24-qe", None), ("mine", SCORER)])
def test_training_reads_the_same_pair_from_scored_rows_and_from_alma_rows(
    tmp_path: Path, metric: str, scorers: Any
) -> None:
    path = write(tmp_path / "in.jsonl", [row(metric, scorers)])
    rows, _ = read(path, "triplets", scorer=metric)
    assert [(one.chosen, *one.rejected) for one in rows] == [(TEXTS["a"], TEXTS["c"])]
    run(tmp_path, [row(metric, scorers)])
    rows, _ = read(tmp_path / "out" / "alma-r", "alma-r", scorer=metric)
    assert [(one.chosen, *one.rejected) for one in rows] == [(TEXTS["a"], TEXTS["c"])]


def test_errors_are_averaged_only_with_errors(tmp_path: Path) -> None:
    kiwi, chrf = {"a": 0.2, "b": 0.9, "c": 0.5}, {"a": 10.0, "b": 90.0, "c": 5.0}
    (pair,), summary = run(tmp_path, [row("metricx-24", kiwi=kiwi)])
    assert pair["chosen_system"] == "b" and summary["metrics"] == ["kiwi"]
    assert "from 25 down to 0" in summary["metrics_left_out"]["metricx-24"]
    (pair,), summary = run(tmp_path, [row("metricx-24", chrf=chrf)])
    assert pair["chosen_system"] == "a" and summary["metrics"] == ["metricx-24"]
    other = {"a": 1.0, "b": 0.0, "c": 9.0}
    (pair,), summary = run(tmp_path, [row("metricx-24", **{"metricx-24-qe": other})])
    assert pair["chosen_system"] == "a" and len(summary["metrics"]) == 2
    # Asked for, another mean is made; in it, too, errors count against a translation.
    (pair,), _ = run(tmp_path, [row("metricx-24", kiwi=kiwi)], "--metrics", "kiwi+metricx-24")
    assert (pair["chosen_system"], pair["margin"]) == (
        "a",
        pytest.approx((12 - 0.5 + 0.2 - 0.5) / 2),
    )


def test_the_report_turns_such_scores_around_and_says_so(tmp_path: Path) -> None:
    kiwi = {"a": 0.9, "b": 0.5, "c": 0.1}  # the same order as the errors
    lines = [row("mine", SCORER, kiwi=kiwi) | {"source": f"source {n}"} for n in range(40)]
    scored_rows = read_scored(str(write(tmp_path / "scored.jsonl", lines)))
    assert selecting_metrics(scored_rows, None) == ("kiwi",)
    assert selecting_metrics(scored_rows, "mine") == ("mine",)
    by_errors, by_kiwi = scored_rows.table("mine"), scored_rows.table("kiwi")
    assert (by_errors.argsort(axis=1) == by_kiwi.argsort(axis=1)).all()
    said = report(tmp_path, lines).text
    assert "mine counts errors, so lower is better. Such scores have a minus sign" in said
    only = [row("mine", SCORER)]
    assert selecting_metrics(read_scored(str(write(tmp_path / "o.jsonl", only))), None) == ("mine",)


def test_records_and_names_tell_the_direction() -> None:
    assert lower_is_better(SCORER, "mine") and not lower_is_better(SCORER, "kiwi")
    assert lower_is_better({"x": {"model": "google/metricx-24-hybrid-xl-v2p6"}}, "x")
    assert lower_is_better(None, "MetricX-24") and not lower_is_better(None, "xcomet")
