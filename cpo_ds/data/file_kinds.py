"""The kinds of files that rows are read from, and the way out for files of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cpo_ds.data.json_files import json_rows, jsonl_rows
from cpo_ds.data.parquet import DamagedParquet, parquet_rows
from cpo_ds.data.tables import table_rows
from cpo_ds.data.tmx import tmx_rows
from cpo_ds.errors import UserError

Rows = Iterator[tuple[int, dict[str, Any] | None]]


def _parquet(path: Path, label: str) -> Rows:
    try:
        yield from enumerate(parquet_rows(path), start=1)
    except DamagedParquet as error:
        raise UserError(f"{label} is not a valid parquet file ({error}); make it again.") from None


# The unit that the rows of a kind are numbered by, and its reader.
_KINDS: dict[str, tuple[str, Callable[[Path, str], Rows]]] = {
    ".jsonl": ("line", jsonl_rows),
    ".csv": ("line", table_rows),
    ".tsv": ("line", table_rows),
    ".parquet": ("row", _parquet),
    ".json": ("row", json_rows),
    ".tmx": ("row", tmx_rows),
}
_PACKED = tuple(f"{suffix}.gz" for suffix in _KINDS if suffix != ".parquet")
LISTED = ", ".join(_KINDS) + " (or .gz)"
# A folder's .json files often hold settings or counts, so that one with rows is named itself.
_IN_FOLDERS = tuple(name for name in (*_KINDS, *_PACKED) if name not in (".json", ".json.gz"))

_SPREADSHEET = "is a spreadsheet; open it and save it as CSV in UTF-8"
_ARCHIVE = "is packed; unpack it"
_XLIFF = "is XLIFF; cpo-ds prepare from-tm makes rows and pairs of it"
_WAYS_OUT = {
    ".xlsx": _SPREADSHEET,
    ".xlsm": _SPREADSHEET,
    ".xls": _SPREADSHEET,
    ".ods": _SPREADSHEET,
    ".numbers": _SPREADSHEET,
    ".zip": _ARCHIVE,
    ".tar": _ARCHIVE,
    ".tgz": _ARCHIVE,
    ".zst": _ARCHIVE,
    ".bz2": _ARCHIVE,
    ".xz": _ARCHIVE,
    ".7z": _ARCHIVE,
    ".gz": f"{_ARCHIVE}, or name it .jsonl.gz, .csv.gz or .tsv.gz after its content",
    ".txt": "is plain text; name it .tsv if it is a table whose first line names the columns",
    ".arrow": "is an arrow file; give the folder that save_to_disk wrote, or convert it to parquet",
    ".xml": "is XML; export it as TMX, or as CSV in UTF-8",
    ".xliff": _XLIFF,
    ".xlf": _XLIFF,
}
SUFFIXES = (*_KINDS, *_PACKED, *_WAYS_OUT)


def is_in_folder(name: str) -> bool:
    """Whether the rows of a folder are read from its file of that name, hidden ones left out."""
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(_IN_FOLDERS) and not is_hidden


def no_rows_in(names: list[str], label: str) -> str:
    """Why the rows of a folder with files of these names cannot be read, as a whole sentence."""
    for name in names:
        if name.lower().endswith((".json", ".json.gz")):
            return f"{label} has only .json files, which may hold other things; name one of them."
        for suffix, way_out in _WAYS_OUT.items():
            if name.lower().endswith(suffix):
                return f"{label} has no file ending in {LISTED}; {name} {way_out}."
    return f"{label} has no file ending in {LISTED}; add one."


def unit_and_rows(path: Path, label: str) -> tuple[str, Rows]:
    """What a file's rows are numbered by, "line" or "row", and its rows with their numbers.

    Raises `UserError` for a file of another kind; reading the rows raises it for a bad one.
    """
    name = path.name.lower()
    for suffix, (unit, read) in _KINDS.items():
        if name.endswith(suffix) or (name.endswith(f"{suffix}.gz") and suffix != ".parquet"):
            return unit, read(path, label)
    for suffix, way_out in _WAYS_OUT.items():
        if name.endswith(suffix):
            raise UserError(f"{label} {way_out}.")
    raise UserError(f"{label} does not end in {LISTED}; convert it to one.")
