"""Translations to score and their batches: pure functions.

The batches do not depend on the order of the rows or the number of ranks. So the scores do not
either, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from cpo_ds.storage.results import content_key


class ErrorSpan(TypedDict):
    """A part of a translation that XCOMET marks as an error; `start` and `end` in characters."""

    text: str
    confidence: float  # mean probability of the labels, from 0 to 1
    severity: str  # minor, major or critical
    start: int
    end: int


Score = tuple[float, "list[ErrorSpan] | None"]  # error spans by XCOMET alone


@dataclass(frozen=True)
class Item:
    """A translation to score; `reference` is None if the metric must not see one."""

    source: str
    translation: str
    reference: str | None
    language_pair: str

    @cached_property
    def key(self) -> str:
        """A hash of all that the score depends on, apart from the metric."""
        return content_key(self.source, self.translation, self.reference, self.language_pair)

    @property
    def texts(self) -> tuple[str, ...]:
        """Source and translation, and the reference if there is one."""
        texts = (self.source, self.translation)
        return texts if self.reference is None else (*texts, self.reference)


def joint_batches(
    items: Iterable[Item], count: Callable[[str], int], batch_tokens: int
) -> list[list[Item]]:
    """Batches for metrics that read an item's texts as one sequence; the longest come first.

    `count` gives the number of tokens of a text. A batch has at most `batch_tokens` of them,
    padding included, unless it is a single item.
    """

    def length(item: Item) -> int:
        return sum(map(count, item.texts))

    ordered = sorted(items, key=lambda item: (-length(item), item.key))
    batches: list[list[Item]] = []
    room = 0  # items that still fit into the current batch
    for item in ordered:
        if room == 0:
            batches.append([])
            room = max(1, batch_tokens // max(1, length(item)))
        batches[-1].append(item)
        room -= 1
    return batches


def separate_batches(
    items: Iterable[Item], count: Callable[[str], int], batch_tokens: int
) -> list[list[Item]]:
    """Batches for metrics that encode each text by itself; items of one source stay together.

    A text that several items of a batch share is encoded once and counts once. Otherwise as
    `joint_batches`.
    """
    ordered = sorted(
        items, key=lambda item: (-count(item.source), item.source, item.reference or "", item.key)
    )
    batches: list[list[Item]] = []
    texts: set[str] = set()
    for item in ordered:
        # The batch is a table: as many lines as texts, each padded to the longest.
        together = texts.union(item.texts)
        if not batches or len(together) * max(map(count, together)) > batch_tokens:
            batches.append([])
            together = set(item.texts)
        batches[-1].append(item)
        texts = together
    return batches


def share(batches: Sequence[list[Item]], rank: int, world_size: int) -> list[list[Item] | None]:
    """A rank's batches, with None at the end if other ranks have one more.

    Neighbouring batches cost about the same, so dealing them out in turn is fair.
    """
    own: list[list[Item] | None] = list(batches[rank::world_size])
    steps = -(-len(batches) // world_size)
    return own + [None] * (steps - len(own))
