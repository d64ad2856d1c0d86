"""The rooms of benchmarks/ import one way, and each outside tool has its one place."""

from __future__ import annotations

import ast
from pathlib import Path

from repository import ROOT

BENCHMARKS = ROOT / "benchmarks"
ROOMS = ("measures", "models", "hosts", "pages", "jobs")  # each imports those before it
COMMANDS = {path.stem for path in BENCHMARKS.glob("*.py")}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def test_rooms_import_one_way_and_never_a_command():
    for rank, room in enumerate(ROOMS):
        for path in (BENCHMARKS / room).glob("*.py"):
            wrong = _imports(path) & {*ROOMS[rank + 1 :], *COMMANDS}
            assert not wrong, f"{path.name} of {room}/ imports {wrong}"


def test_commands_do_not_import_each_other():
    for command in COMMANDS:
        assert not _imports(BENCHMARKS / f"{command}.py") & COMMANDS, command


def test_one_module_draws_charts():
    users = [p.name for p in BENCHMARKS.rglob("*.py") if "matplotlib" in _imports(p)]
    assert users == ["charts.py"]


def test_no_module_changes_the_path_of_imports():
    for path in BENCHMARKS.rglob("*.py"):
        assert "sys.path" not in path.read_text(encoding="utf-8"), path.name
