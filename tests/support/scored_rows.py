"""Scored rows, and `cpo-ds prepare select` on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preference_data import write

from cpo_ds import cli

TEXTS = {"a": "Guten Morgen!", "b": "Gute Morgen.", "c": "Morgen."}


def scored(
    kiwi: dict[str, float | None],
    xcomet: dict[str, float | None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """An English-German row; the reference takes part if it has scores."""
    scores = {"kiwi": kiwi, "xcomet": kiwi if xcomet is None else xcomet}
    row = {
        "language_pair": "en-de",
        "source": "Good morning.",
        "reference": "Guten Morgen.",
        "candidates": TEXTS,
        "scores": scores,
    }
    return row | changes


def run(folder: Path, rows: list[Any], *options: object) -> tuple[list[Any], dict[str, Any]]:
    """Selects from rows; returns the pairs written and the summary."""
    path, output = write(folder / "scored.jsonl", rows), folder / "out"
    arguments = ["prepare", "select", "--input", path, "--output", output, *options]
    assert cli.main([str(argument) for argument in arguments]) == 0
    lines = (output / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads((output / "summary.json").read_text())


def names(folder: Path, rows: list[Any], *options: object) -> list[tuple[str, str]]:
    pairs, _ = run(folder, rows, *options)
    return [(pair["chosen_system"], pair["rejected_system"]) for pair in pairs]


def refused(
    capsys: pytest.CaptureFixture[str], folder: Path, rows: list[Any], *options: object
) -> str:
    """The error message for wrong rows or options; nothing may be written."""
    path = write(folder / "scored.jsonl", rows)
    arguments = ["prepare", "select", "--input", path, "--output", folder / "out", *options]
    assert cli.main([str(argument) for argument in arguments]) == 2
    assert not (folder / "out").exists()
    said = capsys.readouterr().err
    assert said.startswith("cpo_ds: error: ") and said.count("\n") == 1
    return said


# The folder.


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
