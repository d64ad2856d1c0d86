"""Rows of two systems for human evaluation, and samples drawn from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preference_data import write

from cpo_ds import cli

SCRIPT = "</script><script>document.title = 'broken'</script>"


def rows_of(direction: str, number: int) -> list[dict[str, Any]]:
    """Rows in which `ours` is good and `base` has an error that a metric marked."""
    return [
        {
            "language_pair": direction,
            "source": f"Source {n} of {direction} 🙂 {SCRIPT}",
            "reference": f"Reference {n}",
            "candidates": {"ours": f"Good text {n}", "base": f" 🙂 a bad text {n}"},
            "error_spans": {
                "xcomet": {
                    "ours": [],
                    "base": [{"start": 5, "end": 8, "severity": "critical", "text": "bad"}],
                }
            },
        }
        for n in range(number)
    ]


def evaluate_human(*arguments: object) -> int:
    """Runs `cpo-ds evaluate human`; returns its exit code."""
    return cli.main(["evaluate", "human", *map(str, arguments)])


def sample(folder: Path, rows: list[Any], *options: object) -> Any:
    """Draws a sample into `folder/tasks`; returns its key."""
    path = write(folder / "rows.jsonl", rows)
    assert evaluate_human("sample", "--input", path, "--output", folder / "tasks", *options) == 0
    return json.loads((folder / "tasks.key.json").read_text(encoding="utf-8"))


def tally(folder: Path, *results: object, options: tuple[object, ...] = ()) -> Any:
    """Tallies results against the key of `folder`; returns the JSON."""
    numbers = folder / "tally.json"
    arguments = ["tally", "--key", folder / "tasks.key.json", "--results", *results]
    assert evaluate_human(*arguments, "--json", numbers, *options) == 0
    return json.loads(numbers.read_text(encoding="utf-8"))
