"""`examples/json_to_tmx.py` turns translated JSON files into a memory that from-tm reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from memories import from_tm, put, written
from repository import ROOT

SCRIPT = ROOT / "examples" / "json_to_tmx.py"


def test_translated_json_files_become_a_memory(tmp_path: Path) -> None:
    english = {"title": "Sun & moon", "step": {"user": {"data": {"name": "Your <b>name</b>"}}}}
    german = {"step": {"user": {"data": {"name": "Ihr <b>Name</b>"}}}, "title": "Sonne & Mond"}
    english |= {"new": "Not translated yet", "long": "Two\nlines"}
    german |= {"old": "Gibt es nicht mehr", "long": "Zwei\nZeilen"}
    for folder, texts in (("a/translations", english), ("b", {"error": "No {host}"})):
        put(tmp_path / "in" / folder / "en.json", json.dumps(texts))
    for folder, texts in (("a/translations", german), ("b", {"error": "Kein {host}"})):
        put(tmp_path / "in" / folder / "de.json", json.dumps(texts))
    put(tmp_path / "in" / "c" / "en.json", '{"only": "English"}')
    memory = tmp_path / "memory.tmx"
    command = [sys.executable, SCRIPT, tmp_path / "in", "en", "de", memory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"3 segments written to {memory}\n"
    assert from_tm(memory, tmp_path / "out") == 0
    assert written(tmp_path / "out") == [
        ("Sun & moon", "Sonne & Mond"),
        ("Your <b>name</b>", "Ihr <b>Name</b>"),
        ("No {host}", "Kein {host}"),
    ]
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "usage: python json_to_tmx.py FOLDER" in done.stderr
