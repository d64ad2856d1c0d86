"""Paired tests, against the `sacrebleu` command and against its own statistics."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidate_rows import rows_file
from evaluated import evaluate, refused, row
from sacrebleu import significance as sacrebleu_significance

from cpo_ds.evaluate import significance
from cpo_ds.evaluate.delta_accuracy import agreement
from cpo_ds.evaluate.neural import SegmentScores
from cpo_ds.evaluate.rows import read_directions
from cpo_ds.evaluate.significance import Kind
from cpo_ds.scoring.metrics import Metric


def varied_rows(count: int = 30) -> list[Any]:
    rng = random.Random(0)
    rows = [row(number=number) for number in range(count)]
    for values in rows:
        words = values["reference"].split()
        for system, keep in (("one", 0.8), ("two", 0.7)):
            kept = [word for word in words if rng.random() < keep]
            values["candidates"][system] = " ".join(kept) or "x"
        values["candidates"]["copy"] = values["candidates"]["one"]
    return rows


@pytest.mark.parametrize(("test", "metric"), [("bs", "bleu"), ("ar", "bleu"), ("ar", "chrf")])
def test_both_tests_equal_the_command(tmp_path: Path, test: str, metric: str) -> None:
    """The command cannot write chrF's bootstrap as JSON, since it holds float32."""
    rows = varied_rows()
    options = [f"--paired-{test}", f"--paired-{test}-n", "200"]
    report = evaluate(tmp_path, rows, "--metric", metric, *options)
    files = {"references": [values["reference"] for values in rows]}
    files |= {s: [values["candidates"][s] for values in rows] for s in ("one", "two", "copy")}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [
        sys.executable, "-m", "sacrebleu", "references", "-i", "one", "two", "copy", "-w", "10",
        "-m", metric, "-f", "json", *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = {line["system"]: line for line in json.loads(done.stdout)}
    for comparison in report["significance"]:
        name = {"bleu": "BLEU", "chrf": "chrF2"}[comparison["metric"]]
        by_command = expected[comparison["system"]][name]
        assert comparison["p_value"] == pytest.approx(by_command["p_value"], abs=1e-9)
        if test == "bs":
            assert comparison["mean"] == pytest.approx(by_command["mean"], abs=1e-9)
            assert comparison["interval"] == pytest.approx(by_command["ci"], abs=1e-9)
    verdicts = {c["system"]: c["verdict"] for c in report["significance"]}
    assert verdicts["copy"] == "same texts" and verdicts["two"] in ("worse", "tie")


class Mean:
    """A metric for sacreBLEU whose score is the mean of a statistic of segments."""

    def _extract_corpus_statistics(self, hypotheses: Any, references: Any) -> Any:
        return [[float(text), 1.0] for text in hypotheses]

    def _aggregate_and_compute(self, stats: Any) -> Any:
        return self._compute_score_from_stats(np.array(stats).sum(0))

    def _compute_score_from_stats(self, stats: Any) -> Any:
        return sacrebleu_significance.Result(float(stats[0]) / float(stats[1]))


@pytest.mark.parametrize("test", ["bs", "ar"])
def test_scores_of_segments_are_tested_as_sacrebleu_tests(tmp_path: Path, test: str) -> None:
    """Numbers that float32 holds, so that sacreBLEU's sums are exact too."""
    rng = random.Random(1)
    rows = [row(number=number) for number in range(60)]
    for values in rows:
        values["candidates"]["one"] = str(rng.randrange(100) / 64)
        values["candidates"]["two"] = str(rng.randrange(110) / 64)
    (direction,) = read_directions(str(rows_file(tmp_path, *rows)))
    numbers = {s: [float(text) for text in direction.translations(s)] for s in ("one", "two")}
    scores = SegmentScores(
        Metric("kiwi", "kiwi"), {}, {("en-de", system): n for system, n in numbers.items()}
    )
    (ours,) = significance.compare_segments(scores, direction, "one", Kind(test, 500))

    metric: Any = Mean()
    first = metric._extract_corpus_statistics(map(str, numbers["one"]), None)
    baseline = {"m": (first, metric._aggregate_and_compute(first))}
    run = {
        "bs": sacrebleu_significance._paired_bs_test,
        "ar": sacrebleu_significance._paired_ar_test,
    }
    texts = [str(number) for number in numbers["two"]]
    _, theirs = run[test](baseline, "two", texts, None, {"m": metric}, 500, -1, 12345)
    assert ours.p_value == theirs["m"].p_value
    assert ours.difference == pytest.approx(theirs["m"].score - baseline["m"][1].score)
    if test == "bs":
        assert ours.mean == pytest.approx(theirs["m"].mean)
        assert ours.interval == pytest.approx(theirs["m"].ci)


@pytest.mark.parametrize(
    ("name", "first", "second", "verdict"),
    [("kiwi", 0.2, 0.8, "better"), ("metricx-24", 3.0, 2.0, "better"), ("kiwi", 0.5, 0.5, "tie")],
)
def test_verdicts_know_which_end_of_the_scale_is_good(
    tmp_path: Path, name: str, first: float, second: float, verdict: str
) -> None:
    (direction,) = read_directions(str(rows_file(tmp_path, *(row(number=n) for n in range(20)))))
    values = {("en-de", "one"): [first] * 20, ("en-de", "two"): [second] * 20}
    scores = SegmentScores(Metric(name, name), {}, values)
    (comparison,) = significance.compare_segments(scores, direction, "one", Kind("ar", 200))
    assert comparison.verdict == verdict


@pytest.mark.parametrize(
    ("metric", "difference", "share"),
    [
        ("bleu", 0.1, "below 50%"),
        ("bleu", -2.5, "80-85%"),
        ("bleu", 9.0, "above 85%"),
        ("chrf", 1.63, "80-85%"),
        ("comet-22", 0.0056, "80-85%"),
        ("kiwi", 0.0124, "80-85%"),
        ("own", 1.0, None),
    ],
)
def test_delta_accuracy(metric: str, difference: float, share: str | None) -> None:
    """The paper's table gives 80% for these differences."""
    models = {"comet-22": "Unbabel/wmt22-comet-da", "kiwi": "Unbabel/wmt23-cometkiwi-da-xxl"}
    assert agreement(Metric(metric, models.get(metric, metric)), difference) == share


def test_wrong_tests_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--input", str(rows_file(tmp_path, row())), "--metric", "chrf", "--paired-ar"]
    assert "give a number from 100" in refused(capsys, *start, "--paired-ar-n", "5")
    assert "the rows have one only" in refused(capsys, *start, "--system", "one")
    assert "did you mean two" in refused(capsys, *start, "--baseline", "tow")
