"""Frees the memory of models whose DeepSpeed engines are destroyed."""

from __future__ import annotations

import gc
from typing import Any

import torch
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator


def free_models() -> None:
    """Frees models that nothing of this package refers to any more.

    DeepSpeed itself still does at ZeRO stage 3: evaluations leave the model on a stack of its
    module, and a cache over all engines holds their layers.
    """
    FWD_MODULE_STACK.clear()
    name = "_PartitionedParameterCoordinator__params_to_release"
    wrapper: Any = getattr(PartitionedParameterCoordinator, name)
    for cell in wrapper.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
