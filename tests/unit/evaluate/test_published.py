"""Published scores: whole, with their sources, and shown apart from results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from evaluated import evaluate, row

from cpo_ds.data.prompts import parse_direction
from cpo_ds.evaluate.published import DATA
from cpo_ds.evaluate.results import MEANS, groups_of
from cpo_ds.scoring.metrics import parse_metrics

CONTENT = json.loads(DATA.read_text(encoding="utf-8"))


def test_every_row_is_whole() -> None:
    keys = [(r["system"], r["language_pair"], r["metric"], r["test_set"]) for r in CONTENT["rows"]]
    assert len(keys) == len(set(keys)) > 150
    for one in CONTENT["rows"]:
        assert one["source"] in CONTENT["sources"] and 10 < one["score"] < 100
        parse_metrics([one["metric"]])
        if one["language_pair"] not in MEANS:
            parse_direction(one["language_pair"])


def test_means_are_those_of_their_directions() -> None:
    rows = {(r["system"], r["metric"], r["language_pair"]): r["score"] for r in CONTENT["rows"]}
    checked = 0
    for (system, metric, group), mean in rows.items():
        parts = [
            score
            for (other, by, pair), score in rows.items()
            if (other, by) == (system, metric) and pair not in MEANS and group in groups_of(pair)
        ]
        if group in MEANS[:2] and len(parts) == 5:
            assert statistics.fmean(parts) == pytest.approx(mean, abs=0.011), (system, metric)
            checked += 1
    assert checked == 10


def test_they_are_shown_beside_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(tmp_path, [row()], "--metric", "bleu", "--metric", "chrf", "--published")
    assert {r["metric"] for r in report["published"]} == {"bleu"}
    assert all(r["source"] in CONTENT["sources"].values() for r in report["published"])
    assert {r["system"] for r in report["results"]} == {"one", "two"}
    printed = capsys.readouterr().out
    assert "published, bleu (WMT22, Icelandic WMT21)" in printed
    assert "arXiv 2401.08417" in printed and "27.03" in printed
    assert "published" not in evaluate(tmp_path, [row()], "--metric", "bleu")
