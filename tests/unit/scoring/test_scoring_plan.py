"""Batches of texts to score, shared among ranks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.scoring.plan import Item, joint_batches, separate_batches, share

TEXTS = st.text("ab c", min_size=1, max_size=12)
ITEMS = st.lists(st.builds(Item, TEXTS, TEXTS, st.just(None), st.just("en-de")), unique=True)


def cost(batch: list[Item], cut: Any) -> int:
    """Tokens of a batch, padding included, a token being a character."""
    if cut is joint_batches:
        return len(batch) * max(sum(map(len, item.texts)) for item in batch)
    texts = {text for item in batch for text in item.texts}
    return len(texts) * max(map(len, texts))


@pytest.mark.parametrize("cut", [joint_batches, separate_batches])
@given(items=ITEMS, seed=st.randoms(), budget=st.integers(1, 80))
def test_batches_hold_everything_once_within_the_budget(
    cut: Any, items: list[Item], seed: Any, budget: int
) -> None:
    batches = cut(items, len, budget)
    assert Counter(item for batch in batches for item in batch) == Counter(items)
    assert all(cost(batch, cut) <= budget or len(batch) == 1 for batch in batches)
    shuffled = list(items)
    seed.shuffle(shuffled)
    assert cut(shuffled, len, budget) == batches


def test_longest_batches_come_first_and_sources_stay_together() -> None:
    items = [Item("x" * n, "y" * n, None, "en-de") for n in (1, 9, 4, 9)]
    items[3] = Item("z" * 9, "y" * 9, None, "en-de")
    batches = joint_batches(items, len, 20)
    assert [[len(item.source) for item in batch] for batch in batches] == [[9], [9], [4, 1]]
    shared = [Item(source, text, None, "en-de") for text in ("a", "b") for source in ("s", "t")]
    batches = separate_batches(shared, len, 3)
    assert [{item.source for item in batch} for batch in batches] == [{"s"}, {"t"}]


@given(count=st.integers(0, 20), world_size=st.integers(1, 5))
def test_ranks_share_all_batches_in_equally_many_steps(count: int, world_size: int) -> None:
    batches = [[Item(str(n), "", None, "")] for n in range(count)]
    shares = [share(batches, rank, world_size) for rank in range(world_size)]
    assert len({len(own) for own in shares}) == 1
    kept = [batch for own in shares for batch in own if batch is not None]
    assert sorted(kept, key=str) == sorted(batches, key=str)
    assert max(sum(b is None for b in own) for own in shares) <= 1
