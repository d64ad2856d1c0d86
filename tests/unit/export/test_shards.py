"""Weights divided into files."""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.export.shards import plan_shards, save_tensors


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 60))
def test_shards_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    named = {str(i): size for i, size in enumerate(sizes)}
    shards = plan_shards(named, limit)
    assert [item for shard in shards for item in shard.items()] == list(named.items())
    assert all(shard and (len(shard) == 1 or sum(shard.values()) <= limit) for shard in shards)
    for shard, following in pairwise(shards):  # none could be fuller
        assert sum(shard.values()) + next(iter(following.values())) > limit


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_may_be_read_as_any_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode
