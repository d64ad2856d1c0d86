"""benchmarks/methods.py with real commands: a tiny model is trained, translates, is evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import methods
import pytest
from launch import ENVIRONMENT
from pages.results import render_file
from runs import small_recipe

PROMPT = "Translate this from English to German:\nEnglish: {}\nGerman:"


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_method_with_noise_is_trained_translates_and_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    sources = [f"the old house {number} by the sea" for number in range(8)]
    pairs = [
        {"prompt": PROMPT.format(source), "chosen": f"das alte Haus {source}", "rejected": "das",
         "direction": "en-de", "selected_by": ["chrf"]}
        for source in sources
    ]  # fmt: skip
    rows = [
        {"language_pair": "en-de", "source": f"a {source}", "reference": f"ein {source}"}
        for source in sources[:3]
    ]
    data = {"format": "pairs", "path": "x", "directions": None, "eval_fraction": 0.0}
    train = {"max_steps": 1, "eval_every_steps": None}
    recipe = small_recipe(tmp_path, stage=0, data=data, train=train)
    command = ["--pairs", write(tmp_path / "pairs.jsonl", pairs), "--config", str(recipe)]
    command += ["--test", write(tmp_path / "test.jsonl", rows), "--model", str(tmp_path / "model")]
    command += ["--methods", "cpo-noised", "--seeds", "1", "--beam", "1", "--max-new-tokens", "4"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "methods.jsonl")]
    base, line = methods.run_all(*methods.parse(command)).lines

    assert "error" not in line, line["error"]
    assert list(line["seconds"]) == ["noise", "train", "translate", "evaluate"]
    metrics = {result["metric"] for result in base["results"]}
    assert metrics == {"bleu", "chrf"} == {test["metric"] for test in line["tests"]}
    # The pairs' own word reaches the evaluation: chrF and its relative are marked.
    assert line["selected_by"] == ["chrf"] and line["headline"] == []
    assert all(result["interferes"] for result in line["results"])
    translated = [json.loads(text) for text in (tmp_path / "work/cpo-noised-1.jsonl").open()]
    assert [set(row["candidates"]) for row in translated] == [{"base", "cpo-noised"}] * 3
    assert not (tmp_path / "work" / "runs" / "cpo-noised-1").exists()
    render_file(tmp_path / "methods.jsonl")
    assert "| cpo-noised | 1 |" in (tmp_path / "methods.md").read_text()
