"""Translation memories as files, and runs of `cpo-ds prepare from-tm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cpo_ds import cli

# Files.


def tmx(*units: str, header: str = 'srclang="en"', doctype: str = "") -> str:
    """A memory, each of whose units begins on a line of its own, the first one on line 3."""
    body = "\n".join(f"<tu>{unit}</tu>" for unit in units)
    return (
        f'<?xml version="1.0"?>{doctype}\n<tmx version="1.4"><header {header}/><body>\n'
        f"{body}\n</body></tmx>\n"
    )


def texts(source: str, target: str, codes: tuple[str, str] = ("en", "de")) -> str:
    """The two texts of a unit of TMX."""
    return "".join(
        f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>'
        for code, text in zip(codes, (source, target), strict=True)
    )


def many(number: int) -> list[str]:
    """Units whose sources differ in their words."""
    return [texts(f"The house number {n} is old.", f"Das Haus {n} ist alt.") for n in range(number)]


def put(path: Path, content: str | bytes) -> Path:
    """Writes a file, in UTF-8 if it is a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# The command.


def from_tm(source: Path, output: Path, *options: object, pair: str | None = "en-de") -> int:
    """Runs the command, by default without held-out rows; returns its exit code."""
    arguments = ["prepare", "from-tm", "--input", source, "--output", output]
    arguments += ["--language-pair", pair] if pair else []
    if "--held-out" not in options:
        arguments += ["--held-out", 0]
    return cli.main([str(argument) for argument in [*arguments, *options]])


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(output: Path, name: str = "rows.jsonl") -> list[tuple[str, str]]:
    """Source and target of each row that the command wrote."""
    return [(row["source"], row["reference"]) for row in rows_of(output / name)]


def dropped(output: Path, section: str = "dropped") -> dict[str, int]:
    """The counts of the summary by reason."""
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return {reason: count["count"] for reason, count in summary[section].items()}
