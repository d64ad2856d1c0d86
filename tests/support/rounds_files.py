"""A file of rounds with everything that its checks look at, in plain files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from cpo_ds.rounds.checks import Inputs, check
from cpo_ds.rounds.settings import load_rounds

RECIPE = {
    "model": {"name_or_path": "x", "dtype": "float32"},
    "data": {"format": "pairs", "path": "x"},
    "lora": {"rank": 4},
    "deepspeed": "zero2",
}


def text_rows(path: Path, words: list[str], *, reference: bool = True) -> Path:
    rows = [{"language_pair": "en-de", "source": word} for word in words]
    rows = [row | {"reference": f"{row['source']}, ja"} for row in rows] if reference else rows
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rounds_file(folder: Path, recipe: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A valid file in a folder; `sections` change it, and None removes a section."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "mine.yaml").write_text(yaml.safe_dump(RECIPE | (recipe or {})), encoding="utf-8")
    values: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "rounds": 2,
        "policy": {"model": str(folder / "model")},
        "sources": {"path": str(text_rows(folder / "sources.jsonl", list("abcdefg")))},
        "select": {"metrics": ["metricx-24-qe"]},
        "train": {"recipe": str(folder / "mine.yaml")},
        "watch": {"path": str(text_rows(folder / "watched.jsonl", ["x", "y"])), "metrics": "chrf"},
    }
    for name, changes in sections.items():
        is_section = isinstance(changes, dict) and name in values
        values[name] = values[name] | changes if is_section else changes
    file = folder / "rounds.yaml"
    kept = {name: value for name, value in values.items() if value is not None}
    file.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return file


def inputs(folder: Path, recipe: dict[str, Any] | None = None, **sections: Any) -> Inputs:
    return check(load_rounds(rounds_file(folder, recipe, **sections)))
