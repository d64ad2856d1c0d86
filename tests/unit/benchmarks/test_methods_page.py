"""The page and the chart of benchmarks/methods.py, by numbers that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import method_scores
from pages import methods as page
from pages.results import render_file

PAIRS = ("en-de", "de-en")
FILE = {"name": "x.jsonl", "lines": 5, "sha256": "abc"}
SHARED: dict[str, Any] = {
    "benchmark": "methods", "model": "tiny", "pairs": FILE, "test": FILE,
    "metrics": ["chrf", "kiwi-22", "mx=google/metricx-24-hybrid-large-v2p6"],
    "selected_by_option": None, "decoding": ["--beam", "5"], "config": "recipes/demo.yaml",
    "settings": [], "ranks": 1, "device": "some CPU", "seconds": {"train": 10.0},
}  # fmt: skip


def line(
    method: str, seed: int | None, scores: dict[str, float], marked: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A run with the same score in both directions; all its differences are gains."""
    results = [
        {"language_pair": pair, "metric": metric, "score": value, "segments": 2,
         "signature": "s", "interferes": metric in marked}
        for metric, value in scores.items()
        for pair in (*PAIRS, "en-xx", "xx-en", "all")
    ]  # fmt: skip
    tests = [
        {"language_pair": pair, "metric": metric, "test": "bs", "samples": 1000, "difference": 1.0,
         "p_value": 0.01, "verdict": "better" if pair == "en-de" else "same texts"}
        for metric in scores
        for pair in PAIRS
        if seed is not None
    ]  # fmt: skip
    more = {"results": results, "tests": tests, "headline": [], "notes": []}
    return SHARED | {"method": method, "seed": seed, "selected_by": list(marked)} | more


def scores(chrf: float, kiwi: float, metricx: float) -> dict[str, float]:
    return {"chrf": chrf, "kiwi-22": kiwi, "mx": metricx}


BASE = line("base", None, scores(20, 0.7, 5.0))
MARKED = ("chrf",)
LINES = [
    BASE,
    line("sft", 1, scores(21, 0.71, 4.5), MARKED),
    line("cpo", 1, scores(24, 0.69, 5.5), MARKED),
    line("sft", 2, scores(23, 0.73, 4.0), MARKED),
    line("cpo", 2, scores(26, 0.65, 6.5), MARKED),
]


def text_of(lines: list[dict[str, Any]], folder: Path) -> str:
    file = folder / "methods_tiny_cpu.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    render_file(file)
    assert file.with_name("methods_tiny_cpu_scores.png").exists()
    return file.with_suffix(".md").read_text()


def test_scores_have_their_mean_and_spread_and_marked_metrics_come_last(tmp_path: Path) -> None:
    text = text_of(LINES, tmp_path)
    assert "# SFT, DPO and CPO on the same pairs: tiny, some CPU" in text
    assert "| method | seeds | kiwi-22 | mx (lower is better) | chrf † |" in text
    assert "| base |  | 70.00 | 5.00 | 20.00 |" in text
    assert "| sft | 2 | 72.00 ± 1.41 | 4.25 ± 0.35 | 22.00 ± 1.41 |" in text
    # A gain is positive if the translations are better, whatever the metric counts.
    assert "| sft | 2 | +2.00 ± 1.41 | +0.75 ± 0.35 | +2.00 ± 1.41 |" in text
    assert "| cpo | 2 | -3.00 ± 2.83 | -1.00 ± 0.71 | +5.00 ± 1.41 |" in text
    # Two seeds, two directions: in one of them the texts are those of the base.
    assert "| sft | 2 / 2 / 0 | 2 / 2 / 0 | 2 / 2 / 0 |" in text
    assert "| direction | base | sft | cpo |" in text
    assert "| de-en | 20.00 | 22.00 ± 1.41 | 25.00 ± 1.41 |" in text


def test_the_parts_of_the_loss_are_compared_seed_by_seed(tmp_path: Path) -> None:
    text = text_of(LINES, tmp_path)
    assert "| NLL alone | sft | +2.00 ± 1.41 | +0.75 ± 0.35 | +2.00 ± 1.41 |" in text
    assert "| preference alone | cpo-without-nll | not run | not run | not run |" in text
    assert "| both, minus NLL alone |  | -5.00 ± 4.24 | -1.75 ± 1.06 | +3.00 ± 0.00 |" in text
    # A seed that one of them lacks does not count.
    gains = method_scores.gains_over(LINES[:4], "cpo", "sft", "chrf")
    assert gains == [3.0]


def test_a_gain_by_the_selecting_metric_alone_is_doubted(tmp_path: Path) -> None:
    text = text_of(LINES, tmp_path)
    assert "The pairs were selected by chrf." in text
    assert "| kiwi-22 | COMET | unrelated | +2.00 ± 1.41 | -3.00 ± 2.83 |" in text
    assert "| chrf | lexical | selected, or a relative | +2.00 ± 1.41 | +5.00 ± 1.41 |" in text
    assert "**cpo gains by chrf, and by none of kiwi-22, mx" in text
    assert page.doubt_of(LINES, "sft") is None


def test_no_gain_is_believed_if_every_metric_is_marked(tmp_path: Path) -> None:
    everything = ("chrf", "kiwi-22", "mx")
    text = text_of([BASE, line("cpo", 1, scores(24, 0.8, 4.0), everything)], tmp_path)
    assert "none of these gains can be believed by itself" in text


def test_pairs_of_unknown_selection_mark_nothing(tmp_path: Path) -> None:
    text = text_of([BASE, line("cpo", 1, scores(24, 0.8, 4.0))], tmp_path)
    assert "No metric is known to have selected the pairs" in text and "†" not in (
        text.replace(page.SCORES_NOTE, "")
    )


def test_runs_that_failed_are_named_and_not_counted(tmp_path: Path) -> None:
    failed = SHARED | {"method": "dpo", "seed": 1, "error": "exit code 2; the log\nends"}
    text = text_of([*LINES, failed], tmp_path)
    assert "**dpo, seed 1: failed: exit code 2.**" in text
    assert "| dpo |" not in text


@pytest.mark.parametrize(("values", "shown"), [([], ""), ([2.0], "2.00"), ([1, 3], "2.00 ± 1.41")])
def test_mean_and_spread(values: list[float], shown: str) -> None:
    assert method_scores.mean_spread(values) == shown
