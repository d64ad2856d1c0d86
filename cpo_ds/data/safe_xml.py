"""Reads XML from outside without danger: no entities, no other files or addresses."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from cpo_ds.errors import UserError

_CHUNK = 2**16  # bytes


def safe_parser(
    label: str,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    text: Callable[[str], None],
) -> Any:
    """An expat parser with these handlers. Expat itself opens no other file or address.

    It raises `UserError`, with the line, for an entity, which may stand for gigabytes, or for
    nothing if its declaration is elsewhere.
    """
    parser = expat.ParserCreate()

    def refuse(name: str, *_: object) -> None:
        raise UserError(
            f"{label}, line {parser.CurrentLineNumber}: uses the XML entity {name!r}, which is not "
            "read for safety; export the file again without entities."
        )

    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = refuse
    parser.SkippedEntityHandler = refuse
    return parser


def chunks(path: Path, label: str) -> Iterator[tuple[bytes, bool]]:
    """Yields a file's bytes, packed by gzip or not, and whether they are the end.

    Raises `UserError` for a damaged gzip file, and `OSError`.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk, False
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{label} is a damaged gzip file ({error}); copy it again.") from None
    yield b"", True
