"""Tokenized pairs as columns: a sequence of pairs that holds no object for each of them."""

from __future__ import annotations

import hashlib
import operator
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from cpo_ds.schema import TokenizedPair


@dataclass(frozen=True)
class Names:
    """The texts that columns refer to by number."""

    directions: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Pairs in a row, [n] each; `tokens` are those of all pairs, and `offsets` [n + 1] cut them."""

    tokens: np.ndarray  # int32
    offsets: np.ndarray  # int32
    num_prefix: np.ndarray  # int32
    num_chosen: np.ndarray  # int32
    chosen_start: np.ndarray  # int32
    rejected_start: np.ndarray  # int32
    direction: np.ndarray  # int32, into `Names.directions`
    file: np.ndarray  # int32, into `Names.files`
    line: np.ndarray  # int64, counted from 1

    def __len__(self) -> int:
        return len(self.line)

    def pair(self, index: int, names: Names) -> TokenizedPair:
        """One of the pairs; its tokens are a view of the column."""
        return TokenizedPair(
            tokens=self.tokens[self.offsets[index] : self.offsets[index + 1]],
            num_prefix=int(self.num_prefix[index]),
            num_chosen=int(self.num_chosen[index]),
            chosen_start=int(self.chosen_start[index]),
            rejected_start=int(self.rejected_start[index]),
            direction=names.directions[self.direction[index]],
            origin=f"{names.files[self.file[index]]}:{self.line[index]}",
        )


class PairColumns(Sequence[TokenizedPair]):
    """A sequence of pairs whose columns may be a memory-mapped file.

    `fingerprint` is that of `pairs_fingerprint`, if it is known. `reference_logps` are the pairs'
    log-probs under DPO's reference, [pairs, 2], or None.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        names: Names,
        fingerprint: str | None = None,
        reference_logps: np.ndarray | None = None,
    ) -> None:
        self._blocks, self._names = [block for block in blocks if len(block)], names
        self._starts = [0, *np.cumsum([len(block) for block in self._blocks]).tolist()]
        self.fingerprint, self._logps = fingerprint, reference_logps

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedPair]: ...
    def __getitem__(self, index: Any) -> Any:
        """A pair, or a list of them. Raises `IndexError`."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = operator.index(index)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(index)
        block = bisect_right(self._starts, number) - 1
        pair = self._blocks[block].pair(number - self._starts[block], self._names)
        if self._logps is None:
            return pair
        chosen, rejected = self._logps[number].tolist()
        return replace(pair, reference_logps=(chosen, rejected))

    def with_reference_logps(self, logps: np.ndarray) -> PairColumns:
        """The same pairs with log-probs under DPO's reference, [pairs, 2]."""
        return PairColumns(self._blocks, self._names, self.fingerprint, logps)

    def lengths(self) -> np.ndarray:
        """Unique tokens of each pair: [pairs], int64."""
        return self._column(lambda block: np.diff(block.offsets))

    def lengths_by_part(self) -> dict[str, np.ndarray]:
        """Tokens of each pair's prompt, and scored tokens of both completions: [pairs] each."""

        def rejected(block: Block) -> np.ndarray:
            # A sequence is the prefix and its branch; the rejected branch is what is left.
            return np.diff(block.offsets) - block.num_chosen - block.rejected_start

        return {
            "prompt": self._column(lambda block: block.chosen_start),
            "chosen": self._column(
                lambda block: block.num_prefix + block.num_chosen - block.chosen_start
            ),
            "rejected": self._column(rejected),
        }

    def directions(self) -> list[str]:
        """The direction of each pair."""
        codes = self._column(lambda block: block.direction).tolist()
        return [self._names.directions[code] for code in codes]

    def _column(self, of_block: Callable[[Block], np.ndarray]) -> np.ndarray:
        columns = [of_block(block) for block in self._blocks]
        return np.concatenate([np.empty(0, dtype=np.int64), *columns])


def lengths_of(pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """Unique tokens of each pair: [pairs], int64."""
    if isinstance(pairs, PairColumns):
        return pairs.lengths()
    return np.array([len(pair.tokens) for pair in pairs], dtype=np.int64)


def count_directions(pairs: Sequence[TokenizedPair]) -> Counter[str]:
    """Numbers of pairs by direction."""
    if isinstance(pairs, PairColumns):
        return Counter(pairs.directions())
    return Counter(pair.direction for pair in pairs)


def pairs_with_logps(pairs: Sequence[TokenizedPair], logps: np.ndarray) -> Sequence[TokenizedPair]:
    """The same pairs with log-probs under DPO's reference, [pairs, 2]."""
    if isinstance(pairs, PairColumns):
        return pairs.with_reference_logps(logps)
    return [
        replace(pair, reference_logps=(chosen, rejected))
        for pair, (chosen, rejected) in zip(pairs, logps.tolist(), strict=True)
    ]


def pairs_fingerprint(pairs: Iterable[TokenizedPair]) -> str:
    """A fingerprint of all pairs' tokens, layout and order: 16 hexadecimal digits."""
    if isinstance(pairs, PairColumns) and pairs.fingerprint is not None:
        return pairs.fingerprint
    digest = PairsDigest()
    for pair in pairs:
        digest.add(pair.tokens, pair.num_prefix, pair.chosen_start, pair.rejected_start)
    return digest.text()


class PairsDigest:
    """Takes the fingerprint of pairs, one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, tokens: np.ndarray, num_prefix: int, chosen: int, rejected: int) -> None:
        """Adds a pair: its tokens, and the starts of its parts."""
        self._digest.update(tokens.tobytes() + b"%d,%d,%d;" % (num_prefix, chosen, rejected))

    def text(self) -> str:
        """The fingerprint of all pairs so far: 16 hexadecimal digits."""
        return self._digest.hexdigest()[:16]
