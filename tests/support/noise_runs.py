"""Runs of `cpo-ds prepare noise`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preference_data import write

from cpo_ds import cli

# The command.


def run(folder: Path, rows: list[Any], *options: object) -> list[dict[str, Any]]:
    path, output = write(folder / "pairs.jsonl", rows), folder / "noised.jsonl"
    arguments = ["prepare", "noise", "--input", path, "--output", output, *options]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def pair(number: int, **changes: Any) -> dict[str, Any]:
    chosen = f"This is translation {number} of the same sentence, in so many words."
    return {"prompt": f"Source {number}", "chosen": chosen, "rejected": "Bad."} | changes
