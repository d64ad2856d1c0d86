"""The planner's estimate of the memory that torch allocates on a GPU in a step."""

from __future__ import annotations

from cpo_ds.config import Config
from cpo_ds.planner.estimate import FRAGMENTATION, GIB, RUNTIME_GIB, memory_plan
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.plan import read_zero

_NOT_ALLOCATED = ("fragmentation", "CUDA context, NCCL")


def allocated_gib(config: Config) -> float:
    """The peak on one GPU with micro-batches of `batch.tokens_per_rank`, in GiB."""
    outlines, zero = Outlines(None), read_zero(config)
    passes = outlines.passes(config, stage=zero.stage)
    plan = memory_plan(config, outlines.weights(config), zero, passes, ranks=1, memory_gib=0.0)
    in_passes = sum(size for name, size in plan.parts.items() if name not in _NOT_ALLOCATED)
    in_update = (plan.update - RUNTIME_GIB * GIB) / (1 + FRAGMENTATION)
    return max(in_passes, in_update) / GIB
