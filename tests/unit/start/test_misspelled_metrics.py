"""A metric with two letters swapped, in every command that takes metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from preference_data import write

from cpo_ds.cli import main

SCORED = {
    "language_pair": "en-de",
    "source": "Good morning.",
    "reference": "Guten Morgen.",
    "candidates": {"a": "Guten Morgen!", "b": "Morgen."},
    "scores": {"chrf": {"a": 90.0, "b": 40.0}},
    "error_spans": {"xcomet": {"a": [], "b": []}},
}
COMMANDS = {
    "prepare score": ["--input", "{rows}", "--output", "{new}", "--metric", "chfr"],
    "prepare select": ["--input", "{rows}", "--output", "{new}", "--metric", "chfr"],
    "prepare report": ["--input", "{rows}", "--output", "{new}", "--metrics", "chfr"],
    "evaluate": ["--input", "{rows}", "--metric", "chfr"],
    "evaluate human": ["sample", "--input", "{rows}", "--output", "{new}", "--spans", "xocmet"],
    "translate": ["--model", "m", "--text", "Hi", "--pair", "en-de", "--rerank", "chfr",
                  "--samples", "4", "--output", "{new}"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_closest_metric_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    rows = write(tmp_path / "rows.jsonl", [SCORED])
    options = [o.format(rows=rows, new=tmp_path / "new") for o in COMMANDS[command]]
    assert main([*command.split(), *options]) == 2
    error = capsys.readouterr().err
    right = "xcomet" if "--spans" in options else "chrf"
    assert error.count("\n") == 1 and f"(did you mean {right}?)" in error
    assert "m=chfr" not in error


def test_pairs_are_selected_by_the_metric_that_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's way without COMET: candidates, score by chrf, report, select."""
    texts = {
        "en": "Good morning.\nThe cat sleeps.\n",
        "ref": "Guten Morgen.\nDie Katze schläft.\n",
        "gpt4": "Guten Morgen!\nDie Katze schläft.\n",
        "winner": "Morgen.\nKatze.\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    new = {name: str(tmp_path / f"{name}.jsonl") for name in ("candidates", "scored")}
    new |= {name: str(tmp_path / name) for name in ("report", "pairs")}
    steps = [
        ["candidates", "--input", str(tmp_path / "en"), "--language-pair", "en-de", "--references",
         str(tmp_path / "ref"), "--output", new["candidates"], "--system",
         f"gpt-4={tmp_path / 'gpt4'}", "--system", f"winner={tmp_path / 'winner'}"],
        ["score", "--input", new["candidates"], "--output", new["scored"], "--metric", "chrf"],
        ["report", "--input", new["scored"], "--output", new["report"]],
        ["select", "--input", new["scored"], "--output", new["pairs"], "--min-margin", "0.02"],
        ["select", "--input", new["scored"], "--output", new["pairs"], "--metric", "chrf"],
    ]  # fmt: skip
    for step in steps:
        if step[0] == "score":  # it joins a group of one rank, which would stay in this process
            command = [sys.executable, "-m", "cpo_ds.cli", "prepare", *step]
            subprocess.run(command, check=True, timeout=120, capture_output=True)
        else:
            assert main(["prepare", *step]) == 0
    printed = capsys.readouterr().out
    assert "metrics taken: chrf, as all 2 rows have scores by it" in printed
    summary = json.loads((tmp_path / "pairs" / "summary.json").read_text(encoding="utf-8"))
    assert summary["metrics"] == ["chrf"] and summary["pairs"] == {"en-de": 2}
