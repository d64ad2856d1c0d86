"""`cpo-ds evaluate audit`: counts faults of translations, or of chosen and rejected texts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpo_ds.data.pair_rows import rejected_by_field
from cpo_ds.data.prompts import parse_direction, source_of
from cpo_ds.data.sources import RawRow, read_raw
from cpo_ds.errors import UserError
from cpo_ds.evaluate.audit import Audit, AuditedText, audit, audit_table
from cpo_ds.evaluate.rows import read_directions
from cpo_ds.evaluate.tables import as_markdown, as_text
from cpo_ds.storage.files import writing

CHOSEN, REJECTED = "chosen", "rejected"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds evaluate audit`."""
    add = parser.add_argument
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", type=Path, metavar="ROWS.jsonl", help="rows with candidates")
    given.add_argument(
        "--pairs", type=Path, metavar="PAIRS.jsonl", help="pairs, as prepare select writes them"
    )
    add(
        "--system",
        action="append",
        dest="systems",
        metavar="NAME",
        help="a system to audit (all of them); repeat the option for more",
    )
    add("--json", type=Path, metavar="FILE", help="counts, and the first rows with each fault")
    add("--markdown", type=Path, metavar="FILE", help="the table for Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table and writes the files; returns the exit code. Raises `UserError`."""
    for name, path in (("json", arguments.json), ("markdown", arguments.markdown)):
        if path is not None and (path.is_dir() or path in (arguments.input, arguments.pairs)):
            raise UserError(f"--{name} {path} is not free; name a file to write.")
    if arguments.pairs is not None:
        if arguments.systems:
            raise UserError("--system chooses among the systems of --input; pairs have none.")
        texts = texts_of_pairs(str(arguments.pairs))
    else:
        texts = texts_of_rows(str(arguments.input), arguments.systems)
    audits, notes = audit(texts)
    if arguments.pairs is not None:
        notes.append(lengths_of_pairs(texts))
    table = audit_table(audits, "system" if arguments.pairs is None else "text")
    print(as_text(table))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    _write(arguments.json, _json(audits, notes))
    _write(arguments.markdown, as_markdown([table], notes))
    return 0


def texts_of_rows(path: str, systems: Sequence[str] | None) -> list[AuditedText]:
    """All translations in a file of rows. Raises `UserError`."""
    return [
        AuditedText(
            system,
            row.language_pair,
            row.source,
            row.candidates[system],
            row.reference,
            row.where,
        )
        for direction in read_directions(path, systems)
        for row in direction.rows
        for system in direction.systems
    ]


def texts_of_pairs(path: str) -> list[AuditedText]:
    """The chosen text of each pair in a file, then its rejected texts.

    Raises `UserError`, also if no row has a rejected text.
    """
    texts = []
    for raw in read_raw(path, "train"):
        if raw is None:
            continue
        direction = raw.text("direction")
        try:
            parse_direction(direction)
        except UserError as error:
            raise raw.error("direction", f"has an {error}") from None
        prompt = _content(raw, "prompt", raw.get("prompt"))
        source = source_of(prompt, direction) or prompt
        for field, value in ({CHOSEN: raw.get(CHOSEN)} | rejected_by_field(raw)).items():
            text, system = _content(raw, field, value), CHOSEN if field == CHOSEN else REJECTED
            texts.append(AuditedText(system, direction, source, text, None, raw.where))
    if all(text.system == CHOSEN for text in texts):
        raise UserError(f"{path}: no row has a rejected text, so there are no pairs to audit.")
    return texts


def _content(raw: RawRow, field: str, value: Any) -> str:
    """A text, or the last message of a conversation."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return raw.checked_text(value, field)


def lengths_of_pairs(texts: Sequence[AuditedText]) -> str:
    """A sentence on how often the chosen text is the shorter one."""
    differences, chosen = list[int](), 0
    for text in texts:
        if text.system == CHOSEN:
            chosen = len(text.text)
        else:
            differences.append(chosen - len(text.text))
    shorter, longer = (sum(sign * one < 0 for one in differences) for sign in (1, -1))
    count = len(differences)
    return (
        f"chosen is shorter than rejected in {shorter / count:.0%} of {count} pairs, "
        f"longer in {longer / count:.0%}: metrics without references prefer short texts, and "
        "a model learns the length that its pairs prefer"
    )


def _json(audits: Sequence[Audit], notes: Sequence[str]) -> str:
    values = {"audits": [one.as_json() for one in audits], "notes": list(notes)}
    return json.dumps(values, ensure_ascii=False, indent=1) + "\n"


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        with writing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
