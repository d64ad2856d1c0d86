"""Reads the units of a memory: one file of any kind, or all files of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cpo_ds.data.file_kinds import is_in_folder
from cpo_ds.data.prompts import parse_direction
from cpo_ds.errors import UserError
from cpo_ds.prepare.memory.table_units import table_units
from cpo_ds.prepare.memory.tmx_units import tmx_units
from cpo_ds.prepare.memory.unit import Unit
from cpo_ds.prepare.memory.xliff_units import xliff_units

_XML: dict[str, Callable[..., Iterator[Unit]]] = {
    ".tmx": tmx_units,
    ".xliff": xliff_units,
    ".xlf": xliff_units,
}
# Files of tools that mark unfinished segments in ways of their own.
_OF_TOOLS = (".sdlxliff", ".mxliff", ".mqxliff", ".sdltm", ".txlf", ".wsxz")


@dataclass(frozen=True)
class Reading:
    """How a memory is read, and the codes of languages that it has."""

    language_pair: str | None
    columns: Mapping[str, str]  # of tables, by what they hold
    keeps_tags: bool
    seen: Counter[str] = field(default_factory=Counter)


def units_of(path: Path, reading: Reading) -> Iterator[Unit]:
    """Yields the units of a file, or of each file below a folder in the order of their names.

    Raises `UserError` for a file that cannot be read, and for a folder without one that can.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; correct the name, or create the file.")
    if not path.is_dir():
        yield from _units_of_file(path, reading)
        return
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and _is_memory(file.relative_to(path).as_posix())
    ]
    if not files:
        raise UserError(
            f"{path} has no file ending in {', '.join(_XML)}, .csv, .tsv, .jsonl or .parquet; add "
            "one."
        )
    for file in files:
        yield from _units_of_file(file, reading)


def _is_memory(name: str) -> bool:
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return not is_hidden and (_reader(name) is not None or is_in_folder(name))


def _reader(name: str) -> Callable[..., Iterator[Unit]] | None:
    """The reader of a file of XML by its name; None for files of rows."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return _XML.get(suffix)


def _units_of_file(path: Path, reading: Reading) -> Iterator[Unit]:
    read = _reader(path.name)
    if path.name.lower().endswith(_OF_TOOLS):
        raise UserError(
            f"{path} is a tool's own format, whose marks of unfinished segments are not read; "
            "export TMX or XLIFF."
        )
    if read is None:
        yield from table_units(str(path), reading.language_pair, reading.columns, reading.seen)
        return
    if reading.language_pair is None:
        raise UserError(f"{path} may hold several languages; give --language-pair, like en-de.")
    if reading.columns:
        raise UserError(f"--columns belongs to tables and has no effect on {path}; leave it out.")
    languages = parse_direction(reading.language_pair)
    yield from read(path, str(path), languages, reading.seen, keeps_tags=reading.keeps_tags)
