"""Rows with a source text, several systems' translations of it, and perhaps a reference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.data.prompts import parse_direction
from cpo_ds.data.sameness import is_blank
from cpo_ds.data.sources import RawRow, read_raw
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


def read_candidates(path: str) -> tuple[list[CandidateRow], Counter[str]]:
    """Reads a jsonl, jsonl.gz or parquet file; returns the rows, and counts of skipped values.

    A row is `{"language_pair", "source", "reference"?, "candidates"?: {name: text}}`; other fields
    are kept. Rows with a blank source and blank candidates are skipped and counted by reason. Null
    candidates are skipped. Raises `UserError`, with file and line, for any other bad value.
    """
    rows: list[CandidateRow] = []
    skipped: Counter[str] = Counter()
    for raw in read_raw(path, "train"):
        if raw is None:
            skipped["blank line"] += 1
        elif _is_blank(raw.values.get("source")):
            skipped["empty source"] += 1
        else:
            rows.append(_candidate_row(raw, skipped))
    if not rows:
        raise UserError(f"{path} has no row with a source; it needs at least one.")
    return rows, skipped


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
    """Writes a jsonl file, whole or not at all. Raises `UserError` if it cannot."""
    with writing(path) as unfinished:
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        unfinished.write_text("".join(lines), encoding="utf-8")
