"""Rows of JSON files: an object on each line, or a list of objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpo_ds.data.file_lines import decoded_lines
from cpo_ds.data.json_text import parse_json, shown
from cpo_ds.errors import UserError

_LIST_HINT = "; a list of objects belongs in a file whose name ends in .json"
_TABLE_HINT = ", or a table whose name ends in .csv or .tsv"


def jsonl_rows(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the number and the object of each line, None for a blank one.

    Raises `UserError` for a line that is no object.
    """
    for number, line in enumerate(decoded_lines(path, label), start=1):
        yield number, _parse_line(line.strip(), f"{label}, line {number}", is_first=number == 1)


def _parse_line(text: str, where: str, *, is_first: bool) -> dict[str, Any] | None:
    if not text:
        return None
    hint = _LIST_HINT if is_first and text.startswith("[") else ""
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        if is_first and text[0] not in "[{":
            hint = _TABLE_HINT
        raise UserError(f"{where}: not valid JSON ({error}); one object per line{hint}.") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{where}: not a JSON object but {shown(values)}; one object per line{hint}."
        )
    return values


def json_rows(path: Path, label: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields the number and the object of each entry of a list, or of each line.

    The file is in memory whole. Raises `UserError` for anything but objects.
    """
    text = "".join(decoded_lines(path, label))
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise UserError(f"{label}: not valid JSON ({error}); write the file again.") from None
        yield from jsonl_rows(path, label)
        return
    rows = [values] if isinstance(values, dict) else values
    _check_entries(rows, label)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{label}, row {number}: not a JSON object but {shown(row)}; write a list of "
                "objects."
            )
        yield number, row


def _check_entries(rows: Any, label: str) -> None:
    """Raises `UserError` for a single value, columns, or a list that is wrapped in an object."""
    if not isinstance(rows, list):
        raise UserError(f"{label} holds no list of objects but {shown(rows)}; write one.")
    if len(rows) != 1 or not isinstance(rows[0], dict):
        return
    only = rows[0]
    wrapped = [
        name
        for name, value in only.items()
        if isinstance(value, list)
        and value
        and isinstance(value[0], dict)
        and "role" not in value[0]
    ]
    if wrapped:
        raise UserError(
            f"{label} is one object, whose field {wrapped[0]} holds a list of objects; write that "
            "list alone into the file."
        )
    if only and all(isinstance(v, list) and v and isinstance(v[0], str) for v in only.values()):
        raise UserError(
            f"{label} holds columns, not rows; write a list with an object for each row (in "
            'pandas: to_json(..., orient="records")).'
        )
