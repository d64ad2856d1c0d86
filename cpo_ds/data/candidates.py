"""Rows with a source text, several systems' translations of it, and perhaps a reference."""

from __future__ import annotations

import contextlib
import json
import os.path
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.data.json_text import UNPAIRED, is_unicode
from cpo_ds.data.prompts import parse_direction
from cpo_ds.data.sameness import is_blank
from cpo_ds.data.sources import RawRow, local_path, read_raw
from cpo_ds.errors import UserError
from cpo_ds.storage.files import writing

REFERENCE = "reference"  # the name of a row's reference among its candidates


@dataclass(frozen=True)
class CandidateRow:
    """A source text and its translations."""

    language_pair: str
    source: str
    reference: str | None
    candidates: dict[str, str]  # none of them blank
    values: dict[str, Any]  # the row as it was read, with all of its fields
    where: str  # like "scored.jsonl, line 12"

    @property
    def translations(self) -> dict[str, str]:
        """All texts to score and to choose from: the reference first, then the candidates."""
        return ({REFERENCE: self.reference} if self.reference else {}) | self.candidates


class CandidateRows:
    """The rows of a file of any kind that `data.sources` reads, which each iteration reads anew.

    So memory does not grow with the number of rows. A row is `{"language_pair", "source",
    "reference"?, "candidates"?: {name: text}}`; other fields are kept. Rows with a blank source and
    blank candidates are skipped, and null candidates too. Iterating raises `UserError`, with file
    and line, for any other bad value, without any row, and if the file changes between iterations.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.skipped: Counter[str] = Counter()  # values by reason, of the last complete iteration
        self._state: list[tuple[Any, ...]] | None = None  # before the first iteration

    def __iter__(self) -> Iterator[CandidateRow]:
        if local_path(self.path) is None and "/" not in self.path and "." not in self.path:
            raise UserError(
                f"there is no file or folder {self.path}; correct the name, or create the file."
            )
        if self._state is None:
            self._state = _state(self.path)
            if _is_pipe(self.path):
                raise UserError(
                    f"{self.path} is neither a file nor a folder; write the rows to a file first, "
                    "since they are read several times."
                )
        skipped: Counter[str] = Counter()
        is_empty = True
        for raw in read_raw(self.path, "train"):
            if raw is None:
                skipped["blank line"] += 1
            elif _is_blank(raw.values.get("source")):
                skipped["empty source"] += 1
            else:
                is_empty = False
                yield _candidate_row(raw, skipped)
        if is_empty:
            raise UserError(f"{self.path} has no row with a source; it needs at least one.")
        if _state(self.path) != self._state:
            raise UserError(
                f"{self.path} changed while it was read; give the same command again when nothing "
                "writes to it."
            )
        self.skipped = skipped


def _state(path: str) -> list[tuple[Any, ...]]:
    """The inode, size and time of change of a file, or of each file below a folder."""
    local = Path(os.path.expanduser(path))
    states = []
    for file in [local] if local.is_file() else sorted(local.rglob("*")):
        is_hidden = any(part.startswith(".") for part in file.relative_to(local).parts)
        with contextlib.suppress(OSError):  # a file that is gone is another state
            about = file.stat()
            if file.is_file() and not is_hidden:
                states.append((str(file), about.st_ino, about.st_size, about.st_mtime_ns))
    return states


def _is_pipe(path: str) -> bool:
    """Whether a path is that of a pipe or a device."""
    local = Path(os.path.expanduser(path))
    return local.exists() and not local.is_file() and not local.is_dir()


def read_candidates(path: str) -> tuple[list[CandidateRow], Counter[str]]:
    """Reads all rows of a file, as `CandidateRows` does; returns them and the skipped values."""
    rows = CandidateRows(path)
    return list(rows), rows.skipped


def _candidate_row(raw: RawRow, skipped: Counter[str]) -> CandidateRow:
    language_pair = raw.text("language_pair")
    try:
        parse_direction(language_pair)
    except UserError as error:
        raise raw.error("language_pair", f"has an {error}") from None

    # Read the reference, if the row has one.
    reference = raw.values.get(REFERENCE)
    if _is_blank(reference):
        skipped["empty reference"] += 1
    reference = None if reference is None or _is_blank(reference) else raw.text(REFERENCE)

    # Read the candidates, without those that are blank or null.
    candidates = {}
    named = raw.mapping("candidates") if raw.values.get("candidates") is not None else {}
    for name, text in named.items():
        if not is_unicode(name):
            raise raw.error(
                "candidates", f"names {name!r} with half of a surrogate pair; rename it"
            )
        if name == REFERENCE and reference:
            raise raw.error(
                f"candidates.{REFERENCE}",
                "has the name of the row's reference; rename the candidate",
            )
        if _is_blank(text):
            skipped["empty candidate"] += 1
        elif text is not None:
            candidates[name] = raw.checked_text(text, f"candidates.{name}")

    source = raw.text("source")
    return CandidateRow(language_pair, source, reference, candidates, raw.values, raw.where)


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and is_blank(value)


def left_out(skipped: Counter[str]) -> list[str]:
    """Lines to print with the counts of skipped values."""
    return [f"  left out, {reason}: {count}" for reason, count in skipped.most_common()]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a jsonl file row by row, whole or not at all. Raises `UserError` if it cannot."""
    with (
        writing(path) as unfinished,
        unfinished.open("w", encoding="utf-8", errors=UNPAIRED) as file,
    ):
        file.writelines(map(row_line, rows))


def row_line(row: dict[str, Any]) -> str:
    """A row as a line of a jsonl file, to be written with `UNPAIRED`."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
