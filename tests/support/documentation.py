"""Reads the documentation: its blocks of code, its commands and its tables."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from repository import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = ("gpu", "download", "hosts")

_FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- needs: ([\w ,]+) -->\s*\Z")


class Block(NamedTuple):
    """A block of code, with the page's line on which its text begins."""

    kind: str
    text: str
    page: Path
    line: int
    needs: tuple[str, ...]  # by a comment `needs:` before the block


class Command(NamedTuple):
    """A command of a page, as words."""

    words: list[str]
    block: Block

    @property
    def where(self) -> str:
        """The page and the line on which its block begins."""
        return f"{self.block.page.name}, line {self.block.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of code of a page."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text[: match.start()])
        needs = tuple(re.split(r"[ ,]+", mark[1])) if mark else ()
        line = text[: match.start(3)].count("\n") + 1
        yield Block(match[2], match[3], page, line, needs)


def commands(page: Path) -> Iterator[Command]:
    """The commands in a page's blocks of shell code, without comments and redirections."""
    for block in blocks(page):
        if block.kind not in ("bash", "sh", "console"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            yield from _commands_of(line, block)


def _commands_of(line: str, block: Block) -> Iterator[Command]:
    inner = re.findall(r"<\(([^)]*)\)", line)  # process substitution
    words = shlex.shlex(re.sub(r"<\([^)]*\)", "FILE", line), posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("|&;"):
            parts.append([])
        else:
            parts[-1].append(word)
    for part in parts:
        end = next((n for n, word in enumerate(part) if set(word) <= set("<>")), len(part))
        while part and re.fullmatch(r"\w+=.*", part[0]):  # variables of the environment
            part, end = part[1:], end - 1
        if part[:end]:
            yield Command(part[:end], block)
    for text in inner:
        yield from _commands_of(text, block)


def table_after(page: Path, mark: str) -> Iterator[list[list[str]]]:
    """The cells of each table behind a comment, from its header on, without marks of code."""
    parts = page.read_text(encoding="utf-8").split(f"<!-- {mark}")[1:]
    for part in parts:
        match = re.search(r"(?:^\|.*\n)+", part, re.MULTILINE)
        assert match, f"{page.name}: no table behind {mark}"
        rows = [line.strip("|").split("|") for line in match[0].splitlines()]
        yield [
            [cell.strip().replace("`", "") for cell in row] for row in rows if "---" not in row[0]
        ]
