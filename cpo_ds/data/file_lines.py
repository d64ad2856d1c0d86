"""The lines of a text file, packed by gzip or not, and why another file has none."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from cpo_ds.errors import UserError

_TABLE = "open it and save it as CSV in UTF-8"
# The first bytes of files that hold no lines of UTF-8, whatever their names end in.
_BEGINNINGS = {
    b"PK\x03\x04": f"is a spreadsheet or an archive; {_TABLE}, or unpack it",
    b"\xd0\xcf\x11\xe0": f"is a spreadsheet; {_TABLE}",
    b"\xff\xfe": "is text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "is text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "is packed by gzip; let its name end in .gz",
    b"PAR1": "is a parquet file; let its name end in .parquet",
}


def lines_of(path: Path, label: str) -> Iterator[bytes]:
    """Yields the lines of a file with their ends, one in memory at a time.

    Raises `UserError` for a damaged gzip file, and for one whose first bytes are not those of text.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    _check_beginning(line, label)
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{label} is a damaged gzip file after line {number} ({error}); copy or make it again."
        ) from None


def _check_beginning(line: bytes, label: str) -> None:
    for beginning, problem in _BEGINNINGS.items():
        if line.startswith(beginning):
            raise UserError(f"{label} {problem}.")


def decoded(line: bytes, number: int, label: str) -> str:
    """The text of a line. Raises `UserError` unless it is UTF-8."""
    try:
        # Some editors begin a file with a byte order mark.
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{label}, line {number}: not valid UTF-8 at byte {error.start + 1}; save the file as "
            "UTF-8."
        ) from None


def decoded_lines(path: Path, label: str) -> Iterator[str]:
    """Yields the lines of a file as texts. Raises `UserError` as `lines_of` and `decoded` do."""
    for number, line in enumerate(lines_of(path, label), start=1):
        yield decoded(line, number, label)
