"""Starts the rig's processes for the tests, and skips with a reason if they cannot run."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import guard
import pytest
from repository import ROOT

FOLDER = Path(__file__).parent
NEEDS_GUARD = pytest.mark.skipif(
    guard.reason_against() is not None, reason=guard.reason_against() or ""
)
# torch starts as many threads as there are cores, and none of them would have work.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def run_script(name: str, *arguments: object) -> str:
    """Runs a script of this folder and returns its output; fails with its last lines."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
    done = subprocess.run(
        [sys.executable, FOLDER / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | _ENVIRONMENT | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@functools.cache
def _results(cases: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cases.json")
        file.write_text(cases)
        lines = run_script("worker.py", file).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def results(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each case of `worker.Case` did. Equal lists of cases run once."""
    return _results(json.dumps(cases))
