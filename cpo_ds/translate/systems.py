"""Translations of existing systems, read from text files with a line for each source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cpo_ds.data.candidates import REFERENCE, write_rows
from cpo_ds.data.json_text import is_unicode
from cpo_ds.data.sameness import is_blank
from cpo_ds.errors import UserError
from cpo_ds.translate.job import count_lines, source_lines, summary, with_candidates
from cpo_ds.translate.lines import Sources, read_aligned


def add_systems(sources: Sources, systems: Sequence[str], output: Path) -> None:
    """Writes the rows with the translations of `systems`, each given as `NAME=FILE`.

    Prints counts. Raises `UserError` for a name or a file that cannot be used; nothing is written
    then.
    """
    texts: dict[str, list[str | None]] = {}
    lines: list[str] = []
    for system in systems:
        # Take the option apart and check the name.
        name, equals, file = system.partition("=")
        if not equals or not file:
            raise UserError(f"--system {system}: write NAME=FILE.")
        check_name(name, f"--system {system}")
        if name in texts:
            raise UserError(f"--system {system}: there is a system {name} already; rename one.")

        # Read the file and count what was cleaned or is missing.
        counts: Counter[str] = Counter()
        texts[name] = _read_system(name, Path(file), sources, counts)
        lines += [summary(output, name, texts[name]), *count_lines(counts)]
    write_rows(output, with_candidates(sources.rows, texts))
    print("\n".join([*source_lines(sources), *lines]))


def check_name(name: str, option: str) -> None:
    """Raises `UserError` if a system cannot have this name, which `option` gives it."""
    if not name.strip():
        raise UserError(f"{option} gives the system no name; give it one.")
    if not is_unicode(name):
        raise UserError(f"{option}: the system's name is not valid UTF-8; give another one.")
    if name == REFERENCE:
        raise UserError(
            f"{option}: {REFERENCE} is the name of a row's own reference; give another name."
        )


def _read_system(name: str, file: Path, sources: Sources, counts: Counter[str]) -> list[str | None]:
    """One system's translation of each row; None for an empty line."""
    texts: list[str | None] = []
    for row, line in zip(sources.rows, read_aligned(file, sources), strict=True):
        text = "" if is_blank(line) else line.strip()
        counts["cleaned, spaces around it removed"] += bool(text) and text != line
        counts["no translation, empty line"] += not text
        if text and row.candidates.get(name, text) != text:
            raise UserError(
                f"{row.where}: there is another candidate of {name} already, not that of {file}; "
                "give the system another name."
            )
        texts.append(text or None)
    return texts
