"""Asks the process groups whether a connection to another rank broke."""

from __future__ import annotations

import torch
import torch.distributed as dist

_BROKEN = ("COMM_ERROR", "REMOTE_ERROR")  # the third kind, TIMEOUT, says nothing of connections


def a_connection_broke() -> bool:
    """Whether NCCL has found an error of a connection, in any group of this process.

    NCCL finds it in a thread of its own, while the main thread waits for the GPU. That thread ends
    this process a minute later, in torch 2.12 to 2.13. So the watch has to name the lost rank
    before: else this rank, and others like it, would look like the ones that were lost.
    """
    groups = dist.distributed_c10d._world.pg_map
    return any(
        group._get_backend(torch.device("cuda")).get_error().name in _BROKEN
        for group, (backend, _) in list(groups.items())  # a copy: the main thread may add groups
        if "nccl" in backend and isinstance(group, dist.ProcessGroup)
    )
