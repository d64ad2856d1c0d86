"""The layout of pairs that share prefixes in one packed row, for the attention backends.

Shape suffixes: T unique tokens, L tokens of a pair.
"""

from __future__ import annotations

from functools import cached_property

import torch

from cpo_ds.schema import to_device

Segments = tuple[tuple[int, int, int], ...]
States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys, values


class SharedPrefixLayout:
    """The layout of the pairs in one packed row, with masks and indices for the backends.

    `segments` holds (prefix, chosen branch, rejected branch) lengths per pair. Each mask or index
    is made when a layer first asks for it, and kept for the other layers.
    """

    def __init__(self, segments: Segments, device: torch.device) -> None:
        self.segments = segments
        self.device = device
        self.lengths = [sum(segment) for segment in segments]
        self._masks: dict[int | None, list[torch.Tensor]] = {}

    def masks(self, window: int | None) -> list[torch.Tensor]:
        """The keys that each query sees, per pair: bool [L, L]. `window` limits the distance."""
        if window not in self._masks:
            self._masks[window] = [
                pair_mask(*segment, window=window, device=self.device) for segment in self.segments
            ]
        return self._masks[window]

    @cached_property
    def key_index(self) -> torch.Tensor:
        """Keys of `[prefix + chosen], [prefix + rejected], ...`: indices into T, int64.

        Keys of a prefix come twice, once for each branch.
        """
        parts, offset = [], 0
        for (prefix, chosen, _), length in zip(self.segments, self.lengths, strict=True):
            branch = offset + prefix + chosen
            parts += [
                torch.arange(offset, branch),
                torch.arange(offset, offset + prefix),
                torch.arange(branch, offset + length),
            ]
            offset += length
        return to_device(torch.cat(parts), self.device)

    @cached_property
    def query_lengths(self) -> list[int]:
        """Lengths of the query sequences `[prefix + chosen], [rejected], ...`."""
        return [
            length
            for prefix, chosen, rejected in self.segments
            for length in (prefix + chosen, rejected)
        ]

    @cached_property
    def key_lengths(self) -> list[int]:
        """Lengths of the key sequences `[prefix + chosen], [prefix + rejected], ...`."""
        return [
            length
            for prefix, chosen, rejected in self.segments
            for length in (prefix + chosen, prefix + rejected)
        ]

    @cached_property
    def query_ends(self) -> torch.Tensor:
        """Cumulative `query_lengths` from 0, int32 [2P + 1]."""
        return self._ends(self.query_lengths)

    @cached_property
    def key_ends(self) -> torch.Tensor:
        """Cumulative `key_lengths` from 0, int32 [2P + 1]."""
        return self._ends(self.key_lengths)

    def _ends(self, lengths: list[int]) -> torch.Tensor:
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return to_device(ends, self.device)


def pair_mask(
    prefix: int, chosen: int, rejected: int, *, window: int | None, device: torch.device | str
) -> torch.Tensor:
    """Visibility inside `prefix · chosen · rejected`: bool [L, L], True if the query sees the key.

    `window` limits the distance between the positions of query and key.
    """
    branch = prefix + chosen  # the rejected branch begins here
    index = torch.arange(branch + rejected, device=device)
    # Each sees itself and earlier ones, but the rejected branch does not see the chosen one.
    visible = index[:, None] >= index[None, :]
    visible &= ~(
        (index[:, None] >= branch) & (index[None, :] >= prefix) & (index[None, :] < branch)
    )
    if window is not None:
        # Positions go on from the prefix in both branches.
        position = torch.where(index < branch, index, index - chosen)
        visible &= position[:, None] - position[None, :] < window
    return visible
