"""The file of a run's tokenized pairs, which ranks map into memory.

It is an Arrow stream with a row for each pair, training pairs first. After it come a JSON object
(`Contents`), its length and a mark in 8 bytes each, and the SHA-256 of all bytes before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from cpo_ds.data.pair_columns import Block, Names, PairColumns
from cpo_ds.ranks.liveness import count_work

FORMAT = 3  # another format, or another way from rows to pairs, takes another number
_MARK = b"cpopairs"
_CHUNK = 2**24
_NUMBERS = ("num_prefix", "direction", "file")
_OF_BRANCHES = ("branch_lengths", "starts")
_LIST = pa.list_(pa.field("item", pa.int32(), nullable=False))
_SCHEMA = pa.schema([
    *((name, _LIST) for name in ("tokens", *_OF_BRANCHES)),
    *((name, pa.int32()) for name in _NUMBERS),
    ("line", pa.int64()),
])  # fmt: skip
_SCORES = pa.field("scores", pa.list_(pa.field("item", pa.float32(), nullable=False)))


@dataclass(frozen=True)
class Part:
    """Training or held-out pairs: their number, what to print of them, and the largest token."""

    count: int = 0
    lines: Sequence[str] = ()
    fingerprint: str = ""
    largest_token: int = 0


@dataclass(frozen=True)
class Contents:
    """What a file says of its pairs."""

    lines: Sequence[str]  # to print: what reading kept and dropped
    train: Part
    held_out: Part
    directions: Sequence[str]
    files: Sequence[tuple[int, str]]  # place (0: data.path, 1: data.eval_path), name below it
    selected_by: Sequence[str] | None = None  # the metrics that selected the pairs, if known


class PairWriter:
    """Writes blocks of pairs to an open file, and its end; `with_scores` if they have scores."""

    def __init__(self, file: IO[bytes], *, with_scores: bool = False) -> None:
        self._file, self._digest, self.closed = file, hashlib.sha256(), False
        self._schema = _SCHEMA.append(_SCORES) if with_scores else _SCHEMA
        self._stream = pa.ipc.new_stream(pa.PythonFile(self, mode="w"), self._schema)

    def add(self, block: Block) -> None:
        """Adds pairs. Raises `OSError`."""
        lists = [
            _lists(block.offsets, block.tokens),
            *(_lists(block.branch_offsets, getattr(block, name)) for name in _OF_BRANCHES),
        ]
        numbers = [pa.array(getattr(block, name), pa.int32()) for name in _NUMBERS]
        columns = [*lists, *numbers, pa.array(block.line, pa.int64())]
        if block.scores is not None:
            columns.append(_lists(block.branch_offsets, block.scores, _SCORES.type))
        self._stream.write_batch(pa.record_batch(columns, schema=self._schema))
        count_work()

    def finish(self, contents: Contents) -> bytes:
        """Writes the end; returns the file's checksum. Raises `OSError`."""
        self._stream.close()
        text = json.dumps(asdict(contents)).encode()
        self.write(text + len(text).to_bytes(8, "little") + _MARK)
        checksum = self._digest.digest()
        self._file.write(checksum)
        self._file.flush()
        return checksum

    # The methods of a file that Arrow calls.

    def write(self, data: Any) -> int:
        """Writes bytes, for Arrow. Raises `OSError`."""
        view = memoryview(data)
        self._digest.update(view)
        self._file.write(view)
        return view.nbytes

    def flush(self) -> None:
        """Does nothing: the file is flushed at its end."""

    def close(self) -> None:
        """Does nothing: the file is closed by whoever opened it."""


def _lists(offsets: np.ndarray, values: np.ndarray, kind: Any = _LIST) -> Any:
    """An Arrow array of lists: the parts of `values` that `offsets` cut."""
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(values, kind.value_type), type=kind
    )


class Damaged(Exception):
    """A file that is cut, changed or of another kind."""


def checksum_of(path: Path) -> bytes:
    """Reads the whole file and returns its checksum. Raises `Damaged` or `OSError`."""
    digest, left = hashlib.sha256(), path.stat().st_size - 32
    with path.open("rb") as file:
        while left > 0 and (data := file.read(min(_CHUNK, left))):
            digest.update(data)
            left -= len(data)
            count_work()
        if left != 0 or file.read() != digest.digest():
            raise Damaged(path)
    return digest.digest()


def ends_with(path: Path, checksum: bytes) -> bool:
    """Whether a file ends with a checksum, without reading the rest. Raises `OSError`."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - len(checksum)))
        return file.read() == checksum


def map_file(path: Path) -> Any:
    """A file's bytes, mapped into memory. Raises `OSError`."""
    return pa.memory_map(str(path)).read_buffer()


def read_pairs(data: Any, places: Sequence[str]) -> tuple[Contents, PairColumns, PairColumns]:
    """The contents, training and held-out pairs of a file's bytes, whose checksum is right.

    `places` are the paths of the data as messages name them. Raises `Damaged` if it is no such
    file.
    """
    buffer = pa.py_buffer(data) if isinstance(data, bytes) else data
    size = len(buffer)
    length = int.from_bytes(buffer.slice(max(0, size - 48), 8).to_pybytes(), "little")
    if size < 48 + length or buffer.slice(size - 40, 8).to_pybytes() != _MARK:
        raise Damaged
    contents = _contents(json.loads(buffer.slice(size - 48 - length, length).to_pybytes()))
    names = Names(
        tuple(contents.directions), tuple(places[place] + name for place, name in contents.files)
    )
    blocks = [_block(batch) for batch in pa.ipc.open_stream(buffer.slice(0, size - 48 - length))]
    train = _part(blocks, names, 0, contents.train)
    return contents, train, _part(blocks, names, contents.train.count, contents.held_out)


def _contents(values: dict[str, Any]) -> Contents:
    parts = {name: Part(**values[name]) for name in ("train", "held_out")}
    return Contents(**values | parts)


def _block(batch: Any) -> Block:
    tokens, branches = batch.column("tokens"), batch.column("starts")
    values = {name: batch.column(name).to_numpy() for name in (*_NUMBERS, "line")}
    of_branches = [name for name in (*_OF_BRANCHES, _SCORES.name) if name in batch.schema.names]
    values |= {name: batch.column(name).values.to_numpy() for name in of_branches}
    return Block(
        tokens=tokens.values.to_numpy(),
        offsets=tokens.offsets.to_numpy(),
        branch_offsets=branches.offsets.to_numpy(),
        **values,
    )


def _part(blocks: Sequence[Block], names: Names, begin: int, part: Part) -> PairColumns:
    """The pairs from `begin` on; blocks do not hold pairs of both parts."""
    starts = np.cumsum([0, *map(len, blocks)])
    own = [
        block
        for block, start in zip(blocks, starts[:-1], strict=True)
        if begin <= start < begin + part.count
    ]
    return PairColumns(own, names, part.fingerprint or None)
