"""Ranks that exchange numbers for the log."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from cpo_ds.engine.engine import Engine
from cpo_ds.ranks.ranks import init_ranks


def exchange_numbers(folder: str) -> None:
    """Each rank writes the sums and the largest value, exchanged together and one by one."""
    ranks = init_ranks()
    generator = torch.Generator().manual_seed(ranks.rank)
    sums = torch.randn(6, generator=generator, dtype=torch.float64)
    value = -1.5 + 0.1 * ((ranks.rank + 1) % ranks.world_size)  # below zero on every rank
    engine = Engine.__new__(Engine)
    engine._deepspeed = SimpleNamespace(world_size=ranks.world_size)

    # Together, while exchanges are counted.
    exchanges = []
    all_reduce = dist.all_reduce

    def count(*arguments: Any, **options: Any) -> Any:
        exchanges.append(arguments)
        return all_reduce(*arguments, **options)

    with mock.patch.object(dist, "all_reduce", count):
        together = engine.sums_and_largest(sums.clone(), value)

    # One by one.
    largest = torch.tensor(value, dtype=torch.float64)
    all_reduce(sums)
    all_reduce(largest, dist.ReduceOp.MAX)
    record = {
        "exchanges": len(exchanges),
        "together": together,
        "one by one": (sums.tolist(), largest.item()),
    }
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(record))
    dist.destroy_process_group()
