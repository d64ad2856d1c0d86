"""The layout of pairs that share prefixes in one packed row, for the attention backends.

Shape suffixes: T unique tokens, U keys of all branches, K key-value heads, D head size,
L tokens of a pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from cpo_ds.schema import to_device

Segments = tuple[tuple[int, ...], ...]
States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys, values


class Part(NamedTuple):
    """Queries that lie side by side in the row, and the keys that they may see."""

    queries: slice
    keys: tuple[slice, ...]  # those of the prefix and of the branch, if they lie apart
    visible: torch.Tensor  # bool [queries, keys], if the query sees the key

    def keys_of(self, states_KTD: torch.Tensor) -> torch.Tensor:
        """Keys or values of this part: [K, its keys, D]; a view if they lie side by side."""
        states = [states_KTD[:, keys] for keys in self.keys]
        return states[0] if len(states) == 1 else torch.cat(states, dim=1)


class SharedPrefixLayout:
    """The layout of the pairs in one packed row, with masks and indices for the backends.

    `segments` holds the lengths of (prefix, chosen branch, rejected branch, ...) per pair. Each
    mask or index is made when a layer first asks for it, and kept for the other layers.
    """

    def __init__(self, segments: Segments, device: torch.device) -> None:
        self.segments = segments
        self.device = device
        self.lengths = [sum(segment) for segment in segments]
        self._kept: dict[Hashable, Any] = {}

    def keep(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returns: made when a layer first asks for it, and kept for the others."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def masks(self, window: int | None) -> list[torch.Tensor]:
        """The keys that each query sees, per pair: bool [L, L]. `window` limits the distance."""
        masks: list[torch.Tensor] = self.keep(
            ("masks", window),
            lambda: [
                pair_mask(segment, window=window, device=self.device) for segment in self.segments
            ],
        )
        return masks

    def parts(self, window: int | None) -> list[Part]:
        """The row in parts that need no other keys, in the order of their queries.

        A pair with one rejected branch is one part. With more, the prefix and the chosen branch are
        one and each rejected branch is one: its queries see only the prefix and that branch, and
        one mask for all branches would grow with the square of their number.
        """
        parts: list[Part] = self.keep(("parts", window), lambda: list(self._parts(window)))
        return parts

    def _parts(self, window: int | None) -> Iterator[Part]:
        start = 0
        for segment, length in zip(self.segments, self.lengths, strict=True):
            prefix, chosen, *rejected = segment
            whole = segment if len(rejected) == 1 else (prefix, chosen)
            tokens = slice(start, start + sum(whole))
            yield Part(tokens, (tokens,), pair_mask(whole, window=window, device=self.device))
            at = tokens.stop
            for branch in rejected[len(whole) - 2 :]:
                own = slice(at, at + branch)
                mask = pair_mask((prefix, branch), window=window, device=self.device)
                yield Part(own, (slice(start, start + prefix), own), mask[prefix:])
                at = own.stop
            start += length

    @property
    def key_index(self) -> torch.Tensor:
        """Keys of `[prefix + chosen], [prefix + rejected], ...`: indices into T, int64 [U].

        Keys of a prefix come once for each branch.
        """
        return self._gather_indices[0]

    @property
    def key_copies(self) -> torch.Tensor:
        """Copies of each key in turn: indices into U, int64 [U]; the inverse of `key_index`."""
        return self._gather_indices[1]

    @property
    def key_copy_begins(self) -> torch.Tensor:
        """Begin of each key's part of `key_copies`: int64 [T]."""
        return self._gather_indices[2]

    @cached_property
    def _gather_indices(self) -> tuple[torch.Tensor, ...]:
        """`key_index`, `key_copies` and `key_copy_begins`, copied to the device as one tensor."""
        parts, offset = [], 0
        for prefix, *branches in self.segments:
            end = offset + prefix
            for branch in branches:
                parts += [torch.arange(offset, offset + prefix), torch.arange(end, end + branch)]
                end += branch
            offset = end
        index = torch.cat(parts)
        keys, copies = index.sort(stable=True)
        indices = (index, copies, torch.searchsorted(keys, torch.arange(offset)))
        moved = to_device(torch.cat(indices), self.device)
        return moved.split([len(part) for part in indices])

    @cached_property
    def query_lengths(self) -> list[int]:
        """Lengths of the query sequences `[prefix + chosen], [rejected], ...`."""
        return [
            length
            for prefix, chosen, *rejected in self.segments
            for length in (prefix + chosen, *rejected)
        ]

    @cached_property
    def key_lengths(self) -> list[int]:
        """Lengths of the key sequences `[prefix + chosen], [prefix + rejected], ...`."""
        return [prefix + branch for prefix, *branches in self.segments for branch in branches]

    @cached_property
    def query_ends(self) -> torch.Tensor:
        """Cumulative `query_lengths` from 0, int32, one more than branches."""
        return self._ends(self.query_lengths)

    @cached_property
    def key_ends(self) -> torch.Tensor:
        """Cumulative `key_lengths` from 0, int32, one more than branches."""
        return self._ends(self.key_lengths)

    def _ends(self, lengths: list[int]) -> torch.Tensor:
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return to_device(ends, self.device)


def pair_mask(
    segments: Sequence[int], *, window: int | None, device: torch.device | str
) -> torch.Tensor:
    """Visibility inside `prefix · chosen · rejected ...`: bool [L, L], if the query sees the key.

    `segments` are the numbers of tokens of the prefix and of each branch. `window` limits the
    distance between the positions of query and key.
    """
    begin_L = _branch_begins(segments, device)
    index = torch.arange(sum(segments), device=device)
    # Each sees itself and earlier ones, but a branch does not see other branches.
    visible = index[:, None] >= index[None, :]
    visible &= (index[None, :] < segments[0]) | (index[None, :] >= begin_L[:, None])
    if window is not None:
        # Positions go on from the prefix in all branches.
        position = index - begin_L + segments[0]
        visible &= position[:, None] - position[None, :] < window
    return visible


def _branch_begins(segments: Sequence[int], device: torch.device | str) -> torch.Tensor:
    """The index at which each token's branch begins: int64 [L].

    The prefix counts as a part of the first branch, which begins after it.
    """
    prefix, *branches = segments
    begins = itertools.accumulate(branches[:-1], initial=prefix)
    lengths = [prefix + branches[0], *branches[1:]]
    parts = [
        torch.full((length,), begin, device=device)
        for length, begin in zip(lengths, begins, strict=True)
    ]
    return torch.cat(parts)


def gather_keys(states_TKD: torch.Tensor, layout: SharedPrefixLayout) -> torch.Tensor:
    """Keys or values in the order of `layout.key_index`: [T, K, D] -> [U, K, D].

    The gradient is the same in every run, unlike that of `index_select`, which adds up in the
    order in which a GPU's threads arrive.
    """
    gathered = _GatherKeys.apply(
        states_TKD, layout.key_index, layout.key_copies, layout.key_copy_begins
    )
    assert isinstance(gathered, torch.Tensor)
    return gathered


class _GatherKeys(torch.autograd.Function):
    """`index_select`, whose backward pass sums the copies of each key without atomics.

    The sum is an embedding bag: one kernel that reads each copy's gradient once, adds up in float32
    or better and writes each key's gradient once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states_TKD: torch.Tensor,
        index_U: torch.Tensor,
        copies_U: torch.Tensor,
        begins_T: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(copies_U, begins_T)
        return states_TKD.index_select(0, index_U)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UKD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        copies_U, begins_T = ctx.saved_tensors
        grad_TE = F.embedding_bag(copies_U, grad_UKD.flatten(1), begins_T, mode="sum")
        return grad_TE.unflatten(1, grad_UKD.shape[1:]), None, None, None
