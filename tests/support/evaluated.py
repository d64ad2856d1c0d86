"""Runs `cpo-ds evaluate` on small files of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from candidate_rows import rows_file

from cpo_ds.cli import main


def row(pair: str = "en-de", number: int = 0, **fields: Any) -> dict[str, Any]:
    """A row with two systems' translations of a source with a number."""
    return {
        "language_pair": pair,
        "source": f"This is the text of number {number}.",
        "reference": f"Das hier ist der Text mit der Nummer {number}.",
        "candidates": {
            "one": f"Das ist der Text mit der Nummer {number}.",
            "two": f"Hier steht Text {number}.",
        },
    } | fields


def evaluate(folder: Path, rows: list[Any], *options: str) -> dict[str, Any]:
    """The JSON file of an evaluation of rows."""
    output = folder / "out.json"
    path = rows_file(folder, *rows)
    assert main(["evaluate", "--input", str(path), "--json", str(output), *options]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


def scores(report: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Scores by metric, system and direction."""
    return {(r["metric"], r["system"], r["language_pair"]): r["score"] for r in report["results"]}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must be refused, in one paragraph."""
    capsys.readouterr()
    assert main(["evaluate", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("cpo_ds: error: ") and message.count("\n") == 1
    return message
