"""The metric that selected a run's pairs goes with them into its export, and does not judge it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from candidate_rows import rows_file
from evaluated import evaluate, row
from helpers import save_tiny_model
from launch import main_on_ranks

from cpo_ds.cli import main


def scored_rows() -> list[dict[str, Any]]:
    return [
        row(number=number) | {"scores": {"chrf": {"one": 60.0 + number, "two": 40.0}}}
        for number in range(150)
    ]


def test_chrf_selects_and_is_no_headline(tmp_path: Path) -> None:
    # Select pairs by chrF, then train on them.
    selected, output = tmp_path / "pairs", tmp_path / "run"
    rows = rows_file(tmp_path, *scored_rows())
    assert main(["prepare", "select", "--input", str(rows), "--output", str(selected)]) == 0
    (done,) = main_on_ranks(
        "--config", "own-pairs", "--model.name_or_path", save_tiny_model(tmp_path / "model"),
        "--data.path", selected / "pairs.jsonl", "--output_dir", output, "--model.dtype", "float32",
        "--train.epochs", 1,
    )  # fmt: skip
    assert done.code == 0, done.output

    # The run, its checkpoint, its export and its card name the metric.
    config = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["selected_by"] == ["chrf"]
    card = (output / "export" / "README.md").read_text(encoding="utf-8")
    assert "These pairs were selected by chrf." in card
    (checkpoint, *_) = sorted((output / "checkpoints").glob("step-*"))
    for folder in (output, checkpoint, output / "export", selected):
        report = evaluate(tmp_path, [row()], "--metric", "chrf", "--trained-by", f"one={folder}")
        assert report["headline"] == [], folder
        marked = {r["system"] for r in report["results"] if r["interferes"]}
        assert marked == {"one"}, folder

    # Translations by the export name it beside their rows.
    settings = {
        "system": "one",
        "model": str(tmp_path / "model"),
        "adapter": str(output / "export"),
    }
    beside = tmp_path / "rows.jsonl.settings.json"
    beside.write_text(json.dumps(settings), encoding="utf-8")
    report = evaluate(tmp_path, [row()], "--metric", "chrf")
    assert report["headline"] == [] and report["selected_by"] == {"one": ["chrf"]}
