"""Weights divided into files."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.export.shards import plan_shards


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 60))
def test_shards_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    named = {str(i): size for i, size in enumerate(sizes)}
    shards = plan_shards(named, limit)
    assert [item for shard in shards for item in shard.items()] == list(named.items())
    assert all(shard and (len(shard) == 1 or sum(shard.values()) <= limit) for shard in shards)
    for shard, following in pairwise(shards):  # none could be fuller
        assert sum(shard.values()) + next(iter(following.values())) > limit
