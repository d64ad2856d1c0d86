"""Tokenized pairs as columns: a sequence of pairs that holds no object for each of them."""

from __future__ import annotations

import hashlib
import operator
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
    branch_lengths: np.ndarray  # int32, of the completions of all pairs
    starts: np.ndarray  # int32, likewise
    branch_offsets: np.ndarray  # int32, [n + 1]; cuts the two before
    direction: np.ndarray  # int32, into `Names.directions`
    file: np.ndarray  # int32, into `Names.files`
    line: np.ndarray  # int64, counted from 1
    scores: np.ndarray | None = None  # float32, of the completions of all pairs

    def __len__(self) -> int:
        return len(self.line)

    def pair(self, index: int, names: Names) -> TokenizedPair:
        """One of the pairs; its tokens are a view of the column."""
        begin, end = self.branch_offsets[index : index + 2].tolist()
        return TokenizedPair(
            tokens=self.tokens[self.offsets[index] : self.offsets[index + 1]],
            num_prefix=int(self.num_prefix[index]),
            branch_lengths=tuple(self.branch_lengths[begin:end].tolist()),
            starts=tuple(self.starts[begin:end].tolist()),
            direction=names.directions[self.direction[index]],
            origin=f"{names.files[self.file[index]]}:{self.line[index]}",
            scores=None if self.scores is None else tuple(self.scores[begin:end].tolist()),
        )


class PairColumns(Sequence[TokenizedPair]):
    """A sequence of pairs whose columns may be a memory-mapped file.

    `fingerprint` is that of `pairs_fingerprint`, if it is known. `reference_logps` are the pairs'
    log-probs under DPO's reference, [pairs, completions], or None.
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
        return _with_logps(pair, self._logps[number])

    def with_reference_logps(self, logps: np.ndarray) -> PairColumns:
        """The same pairs with log-probs under DPO's reference, [pairs, completions]."""
        return PairColumns(self._blocks, self._names, self.fingerprint, logps)

    def lengths(self) -> np.ndarray:
        """Unique tokens of each pair: [pairs], int64."""
        return self._column(lambda block: np.diff(block.offsets))

    def lengths_by_part(self) -> dict[str, np.ndarray]:
        """Tokens of each pair's prompt, and scored tokens of all completions by kind."""
        starts = self._column(lambda block: block.starts)
        prefixes = self._column(
            lambda block: np.repeat(block.num_prefix, np.diff(block.branch_offsets))
        )
        scored = prefixes + self._column(lambda block: block.branch_lengths) - starts
        chosen = np.cumsum([0, *(self.comparisons()[:-1] + 1)])
        return {
            "prompt": starts[chosen],
            "chosen": scored[chosen],
            "rejected": np.delete(scored, chosen),
        }

    def comparisons(self) -> np.ndarray:
        """Rejected completions of each pair: [pairs], int64."""
        return self._column(lambda block: np.diff(block.branch_offsets) - 1)

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


def comparisons_of(pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """Rejected completions of each pair: [pairs], int64."""
    if isinstance(pairs, PairColumns):
        return pairs.comparisons()
    return np.array([pair.num_comparisons for pair in pairs], dtype=np.int64)


def count_directions(pairs: Sequence[TokenizedPair]) -> Counter[str]:
    """Numbers of pairs by direction."""
    if isinstance(pairs, PairColumns):
        return Counter(pairs.directions())
    return Counter(pair.direction for pair in pairs)


def pairs_with_logps(pairs: Sequence[TokenizedPair], logps: np.ndarray) -> Sequence[TokenizedPair]:
    """The same pairs with log-probs under DPO's reference, [pairs, completions].

    Columns beyond a pair's completions are not read.
    """
    if isinstance(pairs, PairColumns):
        return pairs.with_reference_logps(logps)
    return [_with_logps(pair, row) for pair, row in zip(pairs, logps, strict=True)]


def _with_logps(pair: TokenizedPair, logps: np.ndarray) -> TokenizedPair:
    return replace(pair, reference_logps=tuple(logps[: len(pair.starts)].tolist()))


def pairs_fingerprint(pairs: Iterable[TokenizedPair]) -> str:
    """A fingerprint of all pairs' tokens, layout, scores and order: 16 hexadecimal digits."""
    if isinstance(pairs, PairColumns) and pairs.fingerprint is not None:
        return pairs.fingerprint
    digest = PairsDigest()
    for pair in pairs:
        digest.add(pair.tokens, pair.num_prefix, pair.branch_lengths, pair.starts, pair.scores)
    return digest.text()


class PairsDigest:
    """Takes the fingerprint of pairs, one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(
        self,
        tokens: np.ndarray,
        num_prefix: int,
        branch_lengths: Sequence[int],
        starts: Sequence[int],
        scores: Sequence[float] | None = None,
    ) -> None:
        """Adds a pair: its tokens, where its parts begin, and its scores if it has any.

        The lengths of branches count if there are more than two, so that the fingerprint of pairs
        with one rejected completion each is that of older versions.
        """
        numbers = [num_prefix, *starts, *(branch_lengths if len(starts) > 2 else ())]
        text = ",".join(map(str, numbers))
        if scores is not None:
            text += f"|{','.join(map(str, scores))}"
        self._digest.update(tokens.tobytes() + text.encode() + b";")

    def add_block(self, block: Block) -> None:
        """Adds the pairs of a block."""
        lengths, starts = block.branch_lengths.tolist(), block.starts.tolist()
        scores = None if block.scores is None else block.scores.tolist()
        edges = zip(
            pairwise(block.offsets.tolist()), pairwise(block.branch_offsets.tolist()), strict=True
        )
        for ((begin, end), (first, last)), prefix in zip(
            edges, block.num_prefix.tolist(), strict=True
        ):
            parts = (lengths[first:last], starts[first:last], scores and scores[first:last])
            self.add(block.tokens[begin:end], prefix, *parts)

    def text(self) -> str:
        """The fingerprint of all pairs so far: 16 hexadecimal digits."""
        return self._digest.hexdigest()[:16]
