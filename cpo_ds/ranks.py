"""This process's place among all, and how the ranks agree with each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist

from cpo_ds.schema import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process's place among all."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any = None  # process group on the CPU, for what the program itself has to agree on

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on some rank; all ranks get the same answer."""
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return [bool(value) for value in values.tolist()]

    def gather(self, value: Result) -> list[Result]:
        """Every rank's value, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def on_first(self, function: Callable[[], Result]) -> Result:
        """Calls a function on rank 0 alone; its result, or its error, reaches all ranks.

        Raises `UserError`, also for an `OSError`.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            outcome = list(_outcome(function))
        dist.broadcast_object_list(outcome, src=0, group=self.control)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def everywhere(self, function: Callable[[], Result]) -> Result:
        """Calls a function on every rank; where one fails, all raise the first one's error."""
        result, error = _outcome(function)
        first = next((some for some in self.gather(error) if some is not None), None)
        if first is not None:
            raise UserError(first)
        return result


def _outcome(function: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return function(), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.filename or 'a file'}: {error.strerror or error}."


def init_ranks() -> Ranks:
    """Joins the other ranks; `UserError` where this host has too few devices for its ranks."""
    rank, world_size, local_rank, local_world = _place()
    on_gpu = torch.cuda.is_available()
    _check_devices(local_rank, local_world, on_gpu)
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))
        # This op is compiled at its first use, and a build that is killed leaves a lock behind on
        # which every later run waits for ever. Plain gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            verbose=False,
            rank=rank,
            world_size=world_size,
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ['MASTER_PORT']} of this host is taken, by another run perhaps; give "
            "the launcher another --master_port."
        ) from None
    # The others may wait long for rank 0, which verifies and converts checkpoints.
    control = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    return Ranks(rank, world_size, local_rank, device, control)


def _place() -> tuple[int, int, int, int]:
    """(rank, world size, local rank, ranks on this host) from the launcher, or alone."""
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= alone | {"MASTER_PORT": str(_free_port())}
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, world_size, local_rank = (int(os.environ[name]) for name in names)
    local_world = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE")
    return rank, world_size, local_rank, int(local_world or local_rank + 1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _check_devices(local_rank: int, local_world: int, on_gpu: bool) -> None:
    if on_gpu:
        devices, what = torch.cuda.device_count(), "GPU"
        allowed = devices
    else:
        devices, what = os.cpu_count() or 1, "CPU core"
        allowed = 2 * devices  # ranks may share cores, for trying things out; not without end
    if local_world > allowed or local_rank >= allowed:
        raise UserError(
            f"host {socket.gethostname()} was given {max(local_world, local_rank + 1)} ranks but "
            f"has {devices} {what}{'s' if devices != 1 else ''}; lower --num_accelerators, or the "
            "slots of this host in the hostfile."
        )
