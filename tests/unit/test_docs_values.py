"""Values, names and messages in the documentation are those of the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from documentation import PAGES, blocks, table_after
from repository import ROOT

from cpo_ds.config import Config
from cpo_ds.recipe import SETTINGS, load_config
from cpo_ds.settings.other_names import OTHER_NAMES

_DOCS = ROOT / "docs"
_SECTIONS = ("model", "data", "loss", "lora", "optim", "batch", "train", "checkpoint", "logging")
_NOT_SETTINGS = re.compile(r"\.(py|md|yaml|json|jsonl|safetensors|slurm)\b")


def value_of(config: Config, field: str) -> object:
    """A recipe's value of a dotted field; none if its section is not there."""
    value: object = config
    for part in field.split("."):
        value = getattr(value, part, None)
    return value


def same(cell: str, value: object) -> bool:
    """Whether a cell of a table shows a value."""
    if isinstance(value, (int, float)):
        return cell != "none" and float(cell) == value
    return cell == ("none" if value is None else str(value))


def test_the_page_on_recipes_has_their_values() -> None:
    ((header, *rows),) = table_after(_DOCS / "recipes.md", "recipe values")
    assert len(rows) > 15
    for column, names in enumerate(header[2:], start=2):
        for name in names.split(", "):
            config, _ = load_config(["--config", name])
            for row in rows:
                value = value_of(config, row[0])
                assert row[column] == "" or same(row[column], value), (name, row[0], value)
    assert not same("2e-6", 1e-4) and not same("none", 16) and not same("16", None)


def test_names_of_other_trainers_are_those_that_messages_know() -> None:
    tables = list(table_after(_DOCS / "moving.md", "names of other trainers"))
    assert len(tables) == 4
    leaves = {setting.rpartition(".")[2]: setting for setting in reversed(list(SETTINGS))}
    for theirs, ours in (row for table in tables for row in table[1:]):
        meant = OTHER_NAMES[theirs].field if theirs in OTHER_NAMES else leaves.get(theirs)
        assert meant == ours, (theirs, ours, meant)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_pages_are_settings(page: Path) -> None:
    if page.name == "architecture.md":
        return  # it names modules in the same way
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`(?:--)?((?:{'|'.join(_SECTIONS)})\.\w+)(?:[:=` ][^`]*)?`", text)
    wrong = [n for n in named if n not in SETTINGS and not _NOT_SETTINGS.search(n)]
    assert not wrong, f"{page.name}: {sorted(set(wrong))} are no settings"


def messages() -> str:
    """All text in the package's code, each variable part of a message as one character 0."""
    texts = []
    for path in sorted((ROOT / "cpo_ds").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "\0"
                         for part in node.values]  # fmt: skip
                texts.append("".join(parts))
    return "\n".join(texts)


def test_messages_of_troubleshooting_are_those_of_the_program() -> None:
    known = messages()
    shown = [b for b in blocks(_DOCS / "troubleshooting.md") if b.kind == "message"]
    assert len(shown) > 15
    for block in shown:
        for part in block.text.strip().split("..."):
            part = part.strip(" ()")
            assert part in known, f"line {block.line}: no message has {part!r}"
    assert "the GPU has too much memory" not in known
