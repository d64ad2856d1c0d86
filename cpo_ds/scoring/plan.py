"""What is to be scored, and in which batches: pure functions.

The batches are the same for any order of the rows and any number of ranks, so that scores are too,
to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from cpo_ds.storage.results import content_key


@dataclass(frozen=True)
class Item:
    """A translation to be scored; `reference` only where the metric is to see it."""

    source: str
    translation: str
    reference: str | None
    language_pair: str

    @cached_property
    def key(self) -> str:
        """Changes with all that the score depends on, but for the metric."""
        return content_key(self.source, self.translation, self.reference, self.language_pair)

    @property
    def texts(self) -> tuple[str, ...]:
        """Source, translation, and reference where there is one."""
        texts = (self.source, self.translation)
        return texts if self.reference is None else (*texts, self.reference)


def joint_batches(
    items: Iterable[Item], count: Callable[[str], int], batch_tokens: int
) -> list[list[Item]]:
    """Batches for metrics that read an item's texts as one sequence; the longest come first.

    `count` gives a text's tokens. A batch has at most `batch_tokens`, padding included, or one
    item.
    """

    def length(item: Item) -> int:
        return sum(map(count, item.texts))

    ordered = sorted(items, key=lambda item: (-length(item), item.key))
    batches: list[list[Item]] = []
    room = 0  # items that the current batch still takes
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
    """Batches for metrics that read each text by itself; items of one source stay together.

    A text that several items of a batch share is read, and counts, once.
    """
    ordered = sorted(
        items, key=lambda item: (-count(item.source), item.source, item.reference or "", item.key)
    )
    batches: list[list[Item]] = []
    texts: set[str] = set()
    for item in ordered:
        together = texts.union(item.texts)
        if not batches or len(together) * max(map(count, together)) > batch_tokens:
            batches.append([])
            together = set(item.texts)
        batches[-1].append(item)
        texts = together
    return batches


def share(batches: Sequence[list[Item]], rank: int, world_size: int) -> list[list[Item] | None]:
    """A rank's batches; None in the end where others have one more.

    Neighbours cost about the same, so dealing them out in turn is fair.
    """
    own: list[list[Item] | None] = list(batches[rank::world_size])
    steps = -(-len(batches) // world_size)
    return own + [None] * (steps - len(own))
