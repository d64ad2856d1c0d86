"""Lets every rank map the file of tokenized pairs that rank 0 found or made.

Hosts that share a folder map the same file. A host with a folder of its own gets a copy.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from cpo_ds.config import Config
from cpo_ds.data.pair_file import Damaged, checksum_of, ends_with, map_file, read_pairs
from cpo_ds.data.pair_inputs import Inputs
from cpo_ds.errors import UserError
from cpo_ds.ranks.liveness import count_work
from cpo_ds.ranks.ranks import Ranks
from cpo_ds.run.pair_cache import Kept, keep_pairs, prune, publish, working
from cpo_ds.run.pairs import PreparedPairs, check_pairs, open_inputs
from cpo_ds.storage.files import cannot_be_written

_PIECE = 2**24  # bytes that are sent to other hosts at once
_PATIENCE = 60.0  # seconds until a file of another host shows in a folder that hosts share


def load_pairs(config: Config, ranks: Ranks, *, is_local: bool) -> PreparedPairs:
    """The pairs of a recipe on every rank, memory-mapped; rank 0 alone reads the data, if need be.

    `is_local` says that each host has an `output_dir` of its own. Raises `UserError` for data, a
    model or an adapter that cannot be trained with.
    """
    of_first: list[Inputs] = []

    def find() -> tuple[Any, Kept, list[str]]:
        inputs = open_inputs(config, ranks.say)
        of_first.append(inputs)
        return inputs.tokenizer, keep_pairs(inputs, ranks.say), inputs.places()

    tokenizer, kept, places = ranks.on_first(find)
    if is_local and kept.data is None:
        _copy_to_hosts(kept, ranks, is_shared=bool(config.data.cache))
    data = ranks.everywhere(lambda: _open(kept))
    contents, train, held_out = read_pairs(data, places)

    def check() -> None:
        if not kept.is_new:
            ranks.say(f"pairs: read from {kept.path}")
            for line in contents.lines:
                ranks.say(line)
        check_pairs(of_first[0], contents, train, held_out, ranks.say)

    ranks.on_first(check)
    return PreparedPairs(tokenizer, train, held_out, contents.selected_by)


def _open(kept: Kept) -> Any:
    """The bytes of the pairs. Raises `UserError` if this host does not see their file."""
    if kept.data is not None:
        return kept.data
    deadline = time.monotonic() + _PATIENCE
    while not _is_copy(kept):
        if time.monotonic() > deadline:
            raise UserError(
                f"{kept.path} is not the file that rank 0 wrote; choose a data.cache, or an "
                "output_dir, that all hosts share."
            )
        time.sleep(0.2)
    return map_file(kept.path)


def _is_copy(kept: Kept) -> bool:
    """Whether the file that this host sees ends as rank 0's does."""
    try:
        return ends_with(kept.path, kept.checksum)
    except OSError:
        return False


def _is_whole(kept: Kept) -> bool:
    """Whether this host has an undamaged copy."""
    try:
        return _is_copy(kept) and checksum_of(kept.path) == kept.checksum
    except (Damaged, OSError):
        return False


def _copy_to_hosts(kept: Kept, ranks: Ranks, *, is_shared: bool) -> None:
    """Sends the file to the hosts that have no copy. Raises `UserError` if one cannot keep it."""
    is_first = ranks.rank == ranks.on_this_host[0]
    lacks = is_first and ranks.rank > 0 and not _is_whole(kept)
    if not any(ranks.gather(lacks)):
        return
    size = ranks.on_first(lambda: kept.path.stat().st_size)
    pieces, problem = _sent(kept, size, ranks), None
    if lacks:
        try:
            _write(pieces, kept, is_shared=is_shared)
        except OSError as error:
            problem = cannot_be_written(kept.path.parent, error)
    for _ in pieces:  # all ranks take part to the end
        pass

    def check() -> None:
        if problem is not None:
            raise problem

    ranks.everywhere(check)


def _sent(kept: Kept, size: int, ranks: Ranks) -> Iterator[bytes]:
    """Yields the file's bytes on all ranks, a piece at a time, as rank 0 reads them."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(kept.path.open("rb")) if ranks.rank == 0 else None
        for begin in range(0, size, _PIECE):
            count = min(_PIECE, size - begin)
            # A file that was cut meanwhile has another checksum where it arrives.
            data = file.read(count).ljust(count, b"\0") if file else None
            yield ranks.send_from_first(data, count)
            count_work()


def _write(pieces: Iterator[bytes], kept: Kept, *, is_shared: bool) -> None:
    """Writes a copy of the file. Raises `OSError`."""
    with working(kept.path.parent) as work:
        with (work / "pairs").open("wb") as file:
            for piece in pieces:
                file.write(piece)
        publish(work / "pairs", kept.path)
    prune(kept.path.parent, kept.path, is_shared=is_shared)
