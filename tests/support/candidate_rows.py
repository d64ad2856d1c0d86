"""Rows of candidates, written to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Rows.

ROW = {"language_pair": "en-de", "source": "s", "reference": "r", "candidates": {"a": "x"}}


def rows_file(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
