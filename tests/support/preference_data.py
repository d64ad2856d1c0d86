"""Rows of preference data in each format, and ways to write and read them."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from repository import ROOT

from cpo_ds.data.rows import read_rows
from cpo_ds.settings.data import DataConfig

# ALMA-R-Preference: into German the scores tie at the top, into English gpt4 wins and alma loses.
ALMA: dict[str, Any] = {
    "language_pair": "de-en",
    "required_directions": "",
    "Delta": 0.0,
    "de": "Hallo Welt.",
    "en": "Hello world.",
    "gpt4_de": "Hallo, Welt.",
    "alma_de": "Grüß dich Welt.",
    "gpt4_en": "Hello, world.",
    "alma_en": "Hello the world.",
    **{f"{name}_de_kiwi_xcomet": s for name, s in {"ref": 0.9, "gpt4": 0.9, "alma": 0.5}.items()},
    **{f"{name}_en_kiwi_xcomet": s for name, s in {"ref": 0.8, "gpt4": 0.9, "alma": 0.3}.items()},
    **{f"{name}_de_kiwi": s for name, s in {"ref": 0.1, "gpt4": 0.2, "alma": 0.3}.items()},
    **{f"{name}_en_kiwi": s for name, s in {"ref": 0.1, "gpt4": 0.1, "alma": 0.1}.items()},
}
X_ALMA = {"source": "Hi", "chosen": "Hallo", "reject": "He", "directions": "en-de"}
PAIR = {"prompt": "Translate: Hi ->", "chosen": " Hallo", "rejected": " He"}
TRIPLET: dict[str, Any] = {
    "language_pair": "en-de",
    "source": "Hi",
    "reference": "Grüß Gott",
    "candidates": {"a": "Hallo", "b": "He", "c": "Servus"},
    "scores": {"kiwi": {"a": 0.9, "b": 0.1, "c": 0.5}, "xcomet": {"a": 0.1, "b": 0.2, "c": 0.8}},
}


def render_chat(messages: list[dict[str, str]], generate: bool) -> str:
    turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages)
    return f"<s>{turns}" + ("<assistant>" if generate else "")


def alma(**changes: Any) -> dict[str, Any]:
    return {"translation": ALMA | changes}


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = text.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_parquet(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path: Path | str, format: str, render: Any = render_chat, **settings: Any) -> Any:
    return read_rows(DataConfig(format=format, path=str(path), **settings), render)


def pairs_of(path: Path, format: str, **settings: Any) -> list[tuple[str, str, str]]:
    rows, _ = read(path, format, **settings)
    return [(row.direction, row.chosen, row.rejected[0]) for row in rows]


def run_python(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
