"""Each promise about checkpoints has a test, which exists."""

from __future__ import annotations

import ast
import re

import pytest
from repository import ROOT

CHECKPOINTS = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
PROMISES = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
# The first cell of a table's head in checkpoints.md; each of its rows is a promise.
TABLES = ("change since the checkpoint", "made again by", "fault")


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the table whose head begins with a cell, as cells."""
    after = page.partition(f"\n| {head} |")[2].splitlines()[2:]
    rows = []
    for line in after:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def promises() -> dict[str, str]:
    """All promises with their tests."""
    rows = re.findall(r"^\| (.+?) \| `(\S+::\w+)` \|$", PROMISES, re.MULTILINE)
    lines = [t for t in PROMISES.splitlines() if t.startswith("| ") and t != "| promise | test |"]
    assert len(rows) == len(lines), "a row without a test"
    return dict(rows)


def test_every_promise_names_a_test_that_exists() -> None:
    missing = []
    for test in promises().values():
        file, _, name = test.partition("::")
        path = ROOT / file
        tree = ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        missing += [test] * (name not in names)
    assert not missing


@pytest.mark.parametrize("head", TABLES)
def test_every_row_of_a_table_is_promised(head: str) -> None:
    rows = table(CHECKPOINTS, head)
    assert len(rows) >= 3
    assert [row[0] for row in rows if row[0] not in promises()] == []


def test_every_way_to_stop_is_promised() -> None:
    section = CHECKPOINTS.partition("## Stopping a run")[2].partition("\n## ")[0]
    stopping = PROMISES.partition("## Stopping")[2].partition("\n## ")[0]
    names = set(re.findall(r"\bSIG[A-Z0-9]+\b|`[\w./]+`|\bSlurm\b|second signal", section))
    assert len(names) >= 6
    assert {name for name in names if name not in stopping} == set()
