"""Reads the rows of a parquet file, even if some of its values have no form in Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.errors import one_line

_BATCH_ROWS = 256
_BUFFER = 2**20  # bytes


class DamagedParquet(Exception):
    """A file that is no whole parquet file; the message is the library's, in one line."""


@dataclass(frozen=True)
class Unreadable:
    """A value that Python has no form for, such as a date in the year 10000."""

    reason: str

    def __repr__(self) -> str:
        return f"an unreadable value ({self.reason})"


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file, in order, a batch of them in memory at a time.

    Values that Python cannot hold are `Unreadable`, since a row may do without their field. Raises
    `DamagedParquet`.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        # A column is read in pieces: of a file with one group of rows, it would be in memory whole.
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for values in zip(*map(_cells, batch.columns), strict=True):
                    yield dict(zip(batch.schema.names, values, strict=True))
    except pyarrow.ArrowException as error:
        raise DamagedParquet(one_line(error)) from None


def _cells(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return Unreadable(one_line(error))
