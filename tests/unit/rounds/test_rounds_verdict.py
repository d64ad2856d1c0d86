"""The rule to stop, the best round, and the report, from evaluations written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rounds_files import inputs

from cpo_ds.errors import UserError
from cpo_ds.rounds.page import console_table, findings, page
from cpo_ds.rounds.results import Course, Trained, read_times, write_results
from cpo_ds.rounds.verdict import Verdict, Watched, best_round, read_verdict, reason_to_stop
from cpo_ds.scoring.metrics import Metric

CHRF, METRICX = Metric("chrf", "chrf"), Metric("metricx-24", "google/metricx-24-hybrid-xxl-v2p6")


def evaluation(
    folder: Path, metric: Metric, scores: dict[str, tuple[float, float]], tests: dict[str, Any]
) -> Path:
    """Scores by direction of start and round 1; tests give verdict and p-value of a direction."""
    results = [
        {"system": system, "language_pair": pair, "metric": metric.name, "score": score}
        for pair, both in scores.items()
        for system, score in zip(("start", "round-1"), both, strict=True)
    ]
    if len(scores) > 1:
        for index, system in enumerate(("start", "round-1")):
            mean = sum(both[index] for both in scores.values()) / len(scores)
            results.append(
                {"system": system, "language_pair": "all", "metric": metric.name, "score": mean}
            )
    significance = [
        {"metric": metric.name, "system": "round-1", "language_pair": pair, "verdict": verdict,
         "p_value": p_value, "interval": 3.0}
        for pair, (verdict, p_value) in tests.items()
    ]  # fmt: skip
    file = folder / "evaluation.json"
    file.write_text(json.dumps({"results": results, "significance": significance}))
    return file


def verdict_of(file: Path, metric: Metric = CHRF) -> Verdict:
    return read_verdict(file, 1, [metric], "start")


def test_a_significant_fall_stops(tmp_path: Path) -> None:
    file = evaluation(tmp_path, CHRF, {"en-de": (50.0, 48.0)}, {"en-de": ("worse", 0.001)})
    verdict = verdict_of(file)
    assert verdict.watched["chrf"].gain == -2 and verdict.watched["chrf"].half_width == 3
    said = reason_to_stop(verdict, [CHRF], 0.0)
    assert said == "round 1: chrf fell by 2 (p = 0.001) against start"
    assert reason_to_stop(verdict, [CHRF], 1.9) and not reason_to_stop(verdict, [CHRF], 2.1)
    assert reason_to_stop(verdict, [CHRF], None) is None
    assert reason_to_stop(verdict, [], 0.0) is None  # a metric that does not decide


@pytest.mark.parametrize(
    ("scores", "test"),
    [((50.0, 48.0), ("tie", 0.2)), ((50.0, 51.0), ("better", 0.001)), ((50.0, 50.0), ("tie", 1))],
)
def test_anything_else_goes_on(tmp_path: Path, scores: Any, test: Any) -> None:
    verdict = verdict_of(evaluation(tmp_path, CHRF, {"en-de": scores}, {"en-de": test}))
    assert reason_to_stop(verdict, [CHRF], 0.0) is None


def test_lower_is_better_for_some_metrics(tmp_path: Path) -> None:
    file = evaluation(tmp_path, METRICX, {"en-de": (3.0, 4.5)}, {"en-de": ("worse", 0.01)})
    one = verdict_of(file, METRICX).watched["metricx-24"]
    assert one.lower_is_better and one.gain == -1.5 and one.falls(0.0) and one.quality == -4.5


def test_several_directions_share_the_level(tmp_path: Path) -> None:
    scores = {"en-de": (50.0, 44.0), "de-en": (60.0, 62.0)}
    for p_value, falls in ((0.03, False), (0.02, True)):
        tests = {"en-de": ("worse", p_value), "de-en": ("better", 0.01)}
        one = verdict_of(evaluation(tmp_path, CHRF, scores, tests)).watched["chrf"]
        assert one.score == 53 and one.gain == -2 and one.falls(0.0) == falls
        assert one.half_width == pytest.approx((9 + 9) ** 0.5 / 2)
    better = {"en-de": (50.0, 49.0), "de-en": (60.0, 62.0)}  # worse in one, better in the mean
    one = verdict_of(evaluation(tmp_path, CHRF, better, tests)).watched["chrf"]
    assert one.is_worse and not one.falls(0.0)


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    for text in ("", "{}", "[]", '{"results": [], "significance": []}'):
        file.write_text(text)
        with pytest.raises(UserError, match="remove it, and give the same command again"):
            verdict_of(file)


def verdict(number: int, chrf: float, other: float = 1.0) -> Verdict:
    gain = None if number == 0 else 0.5
    watched = {
        "chrf": Watched("chrf", chrf, False, gain, 0.4 if number else None),
        "metricx-24-qe": Watched("metricx-24-qe", other, True, gain),
    }
    return Verdict(number, "start" if number else None, watched)


def test_the_best_round_is_the_earlier_of_equals() -> None:
    assert best_round([verdict(0, 5), verdict(1, 7), verdict(2, 7), verdict(3, 6)], "chrf") == 1
    assert best_round([verdict(0, 5), verdict(1, 5)], "chrf") == 0
    assert best_round([verdict(0, 5, 3), verdict(1, 5, 2)], "metricx-24-qe") == 1


TRAINED = Trained(7, 56, 50, 6, 20, {"margin <too> small": 1}, {"metricx-24-qe": 3.0},
                  {"metricx-24-qe": 2.0}, 0.75, True)  # fmt: skip


def test_results_name_and_link_the_best(tmp_path: Path) -> None:
    made, out = inputs(tmp_path), tmp_path / "out"
    (out / "round-1" / "run").mkdir(parents=True)
    both = (verdict(0, 50.0, 3.0), verdict(1, 52.0, 2.0))
    write_results(made, Course(both, (TRAINED,), 1, None, 2))
    values = json.loads((out / "rounds.json").read_text())
    assert values["best"] == {"round": 1, "by": "chrf", "model": str(out / "round-1" / "run")}
    assert values["finished"] is False and values["rounds"][1]["trained"]["sampled"] == 56
    assert (out / "best").resolve() == (out / "round-1" / "run").resolve()
    assert not (out / "best").readlink().is_absolute()
    write_results(made, Course(both, (TRAINED,), 0, "round 1: chrf fell", 2))
    values = json.loads((out / "rounds.json").read_text())
    assert values["finished"] and values["best"]["model"] == str(tmp_path / "model")
    assert not (out / "best").is_symlink()


def test_the_page_and_the_table(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    course = Course((verdict(0, 50.0, 3.0), verdict(1, 52.0, 2.0)), (TRAINED,), 1, None, 1)
    (tmp_path / "out").mkdir()
    times = tmp_path / "out" / "times.jsonl"
    times.write_text('{"round": 1, "stage": "train", "seconds": 75.2}\n{"round": 1, "sta\n')
    html = page(made, course, read_times(made.layout))
    for text in ("1 min 15 s", "metricx-24-qe (selects)", "margin &lt;too&gt; small", "75.0%",
                 "52", "Change since the start, %", "all 1 rounds are done"):  # fmt: skip
        assert text.lower() in html.lower(), text
    table = console_table(made, course).splitlines()
    assert table[0].split() == ["policy", "chrf", "metricx-24-qe", "(selects)", "pairs", "accuracy"]
    assert table[2].startswith("round-1 (best)") and "52.00 ±0.4" in table[2]
    assert findings(made, course)[0].startswith(
        "the best is round 1 (chrf 50.00 at the start, 52.00)"
    )
    alone = Course((verdict(0, 50.0),), (), 0, None, 1)
    assert findings(made, alone) == ["no round is better than the start (chrf 50.00)"]
    assert "Change since the start, %" not in page(made, alone, {})
