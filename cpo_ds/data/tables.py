"""Rows of csv and tsv files, whose first line names the columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from cpo_ds.data.file_lines import decoded_lines
from cpo_ds.data.json_text import shown
from cpo_ds.errors import UserError

_LINE_ENDS = re.compile(r"(?<=\r)(?=[^\n])")
_NUMBER = re.compile(r"[-+\d.,eE]+")
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
_QUOTING = (
    "a text with a separator, a quote or a line break stands in double quotes, and each quote in "
    "it is doubled"
)


def table_rows(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the first line of each row and its texts by column, None for a row of empty cells.

    Columns are separated as the first line says: by commas, semicolons or tabs. Raises `UserError`
    for a first line that names no columns, and for rows that do not fit it.
    """
    # Excel for the Mac ends lines with a carriage return alone.
    lines = chain.from_iterable(map(_LINE_ENDS.split, decoded_lines(path, label)))
    skipped, first = 0, ""
    for first in lines:
        if first.strip() and not first.startswith("sep="):  # a line that Excel writes
            break
        skipped += 1
    if not first.strip():
        return
    separator = _separator(first, is_tsv=".tsv" in path.name.lower())
    last = [first]  # the line that was read last
    records = csv.reader(_noted(chain([first], lines), last), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        before = records.line_num
        number = skipped + before + 1
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{label}, line {number}: the row that begins here is not valid csv ({error}); "
                f"{_QUOTING}."
            ) from None
        if separator == "\t" and records.line_num == before + 1:
            _check_quotes(last[0].rstrip("\r\n").split("\t"), f"{label}, line {number}")
        if names:
            yield number, _row(names, cells, f"{label}, line {number}", separator)
        else:
            names = _names(cells, f"{label}, line {number}")


def _noted(lines: Iterable[str], last: list[str]) -> Iterator[str]:
    for line in lines:
        last[0] = line
        yield line


def _check_quotes(raw: list[str], where: str) -> None:
    """Raises `UserError` if a quoted cell of a line looks as if the quotes belong to its text.

    Many tab-separated files quote nothing, so that a quoted sentence would lose its quotes.
    Programs that quote do so if a text needs it, or all texts of a row.
    """
    needless = [cell for cell in raw if re.fullmatch('"[^"]+"', cell)]
    if needless and any(cell and cell[0] != '"' and not _NUMBER.fullmatch(cell) for cell in raw):
        raise UserError(
            f"{where}: {shown(needless[0])} is in quotes that it does not need; if they belong to "
            'the text, write """text""", else leave them out, or use jsonl.'
        )


def _separator(first: str, *, is_tsv: bool) -> str:
    """The separator that the first line has most often outside of quotes."""
    outside = "".join(first.split('"')[::2])
    return max("\t,;" if is_tsv else ",;\t", key=outside.count)


def _names(cells: list[str], where: str) -> list[str]:
    """The names of the columns. Raises `UserError` if there is one only, or one twice."""
    names = [cell.strip() for cell in cells]
    if len(names) < 2:
        raise UserError(
            f"{where}: only one column, {shown(names[0])}; separate the columns by commas, "
            "semicolons or tabs."
        )
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f"{where}: two columns are named {shown(name)}; rename or remove one.")
    return names


def _row(names: list[str], cells: list[str], where: str, separator: str) -> dict[str, Any] | None:
    """The texts of a row by column, without the column that has no name."""
    if not any(cell.strip() for cell in cells):
        return None
    if len(cells) != len(names):
        raise UserError(
            f"{where}: {len(cells)} cells, but the first line names {len(names)} columns, "
            f"separated by {_NAMES[separator]}; {_QUOTING}."
        )
    for name, cell in zip(names, cells, strict=True):
        if cell.startswith("[{") and "role" in cell and "content" in cell:
            raise UserError(
                f"{where}: field {name} holds messages written as one text, {shown(cell)}; "
                "conversations need a jsonl or parquet file."
            )
    return {name: cell for name, cell in zip(names, cells, strict=True) if name}
