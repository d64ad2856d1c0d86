"""The notebook in examples/ plans, trains, reports and translates."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

EXAMPLES = ROOT / "examples"


def environment() -> dict[str, str]:
    """This process's, with the commands of its Python first and the package of this checkout."""
    commands = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return dict(os.environ, PATH=commands, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")


def shell(command: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment() | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def run_cell(source: str, names: dict[str, Any], folder: Path) -> str:
    """Runs a cell as Jupyter does: lines that begin with ! by a shell, `$NAME` from Python."""
    printed = []
    source = source.replace("\\\n", "")
    for is_shell, lines in _blocks(source):
        if is_shell:
            texts = {name: value for name, value in names.items() if isinstance(value, str)}
            printed.append(shell(lines.removeprefix("!"), folder, **texts))
            continue
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(lines, "cell", "exec"), names)
        printed.append(output.getvalue())
    return "".join(printed)


def _blocks(source: str) -> list[tuple[bool, str]]:
    """Parts of a cell: each line for a shell by itself, and the Python between them."""
    blocks: list[tuple[bool, str]] = []
    for line in source.splitlines(keepends=True):
        if line.startswith("!") or not blocks or blocks[-1][0]:
            blocks.append((line.startswith("!"), line))
        else:
            blocks[-1] = (False, blocks[-1][1] + line)
    return blocks


def test_the_notebook_trains_reports_and_translates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(EXAMPLES / "tiny_model.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)  # what was printed once grows old
    names: dict[str, Any] = {}
    printed = [run_cell("".join(cell["source"]), names, tmp_path) for cell in cells]
    text = "".join(printed)
    assert '"chosen": "Das Haus ist' in printed[0]
    assert "Recommended: train a LoRA adapter" in printed[1]
    accuracies = [float(value) for value in re.findall(r"held-out accuracy (\d\.\d+)", text)]
    assert len(accuracies) >= 3 and accuracies[-1] >= 0.9
    assert (tmp_path / "quickstart" / "run" / "export" / "adapter_config.json").is_file()
