"""Rows of csv and tsv files, whose first line names the columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from cpo_ds.data.file_lines import decoded_lines
from cpo_ds.data.json_text import shown
from cpo_ds.errors import UserError

_LINE_ENDS = re.compile(r"(?<=\r)(?=[^\n])")
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
    records = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    names: list[str] = []
    while True:
        number = skipped + records.line_num + 1
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{label}, line {number}: the row that begins here is not valid csv ({error}); "
                f"{_QUOTING}."
            ) from None
        if names:
            yield number, _row(names, cells, f"{label}, line {number}", separator)
        else:
            names = _names(cells, f"{label}, line {number}")


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
