"""This process's place among all, and how the ranks agree with each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist

from cpo_ds.errors import UserError
from cpo_ds.ranks.environment_file import ENVIRONMENT_FILE
from cpo_ds.ranks.interfaces import choose_interface
from cpo_ds.ranks.place import Place, place

Result = TypeVar("Result")

# How long ranks wait for each other beyond the stall limit: one verifies, converts or saves.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process's place among all."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any = None  # process group on the CPU, for what the program itself has to agree on
    hosts: tuple[str, ...] = ()  # the host of each rank, by name

    @property
    def on_this_host(self) -> list[int]:
        """The ranks of this host, this one among them."""
        return [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]

    def say(self, text: str) -> None:
        """Prints a text on rank 0; the other ranks print nothing."""
        if self.rank == 0:
            print(text, flush=True)

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

    def wait_for_all(self) -> None:
        """Waits until all ranks have come here."""
        dist.barrier(group=self.control)

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

    def on_each_host(self, function: Callable[[], Result]) -> Result:
        """Calls a function on the first rank of each host; its result reaches the ranks there.

        Raises `UserError`, also for an `OSError`, on all ranks where it fails on one.
        """
        first = self.on_this_host[0]
        outcomes = self.gather(_outcome(function) if self.rank == first else (None, None))
        error = next((some for _, some in outcomes if some is not None), None)
        if error is not None:
            raise UserError(error)
        return outcomes[first][0]  # type: ignore[return-value]

    def per_folder(self, *, is_local: bool) -> Callable[[Callable[[], Result]], Result]:
        """`on_each_host` where each host has its own folder, `on_first` where all share one."""
        return self.on_each_host if is_local else self.on_first

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


def init_ranks(stall_minutes: float | None = None) -> Ranks:
    """Joins the other ranks; `UserError` where this host has too few devices for its ranks.

    With `stall_minutes`, after which a watch ends the run if no rank gets on, no group of ranks
    gives up before that.
    """
    here = _join_place()
    rank, world_size, local_rank = here.rank, here.world_size, here.local_rank
    local_world = here.local_world_size
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
    if world_size > local_world:
        choose_interface()
    backend = "nccl" if on_gpu else "gloo"
    try:
        _join_after_restart(backend, rank, world_size, device if on_gpu else None)
        deepspeed.init_distributed(
            dist_backend=backend,
            verbose=False,
            rank=rank,
            world_size=world_size,
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ['MASTER_PORT']} of this host is taken, by another run perhaps; give "
            f"the launcher another --master_port (mpirun, srun: MASTER_PORT in {ENVIRONMENT_FILE})."
        ) from None
    _wait_longer(_PATIENCE + timedelta(minutes=stall_minutes or 0))
    control = dist.new_group(backend="gloo")
    hosts: list[Any] = [None] * world_size
    dist.all_gather_object(hosts, socket.gethostname(), group=control)
    return Ranks(rank, world_size, local_rank, device, control, tuple(hosts))


def _join_after_restart(backend: str, rank: int, world_size: int, gpu: torch.device | None) -> None:
    """Joins the other ranks where torchrun started all of them again.

    Its store outlives the ranks and still has the addresses of those before, on which these would
    wait for ever: theirs go under another name.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restarts == 0:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"restart_{restarts}", dist.TCPStore(address, port))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, device_id=gpu)


def _wait_longer(limit: timedelta) -> None:
    """Has every group of ranks, also those that DeepSpeed makes later, wait so long for a rank.

    torch's own limits, 10 minutes with NCCL, would end the ranks that wait for a hung one, or for
    one that reads or writes, before the watch can say which it is. DeepSpeed passes no limit on to
    the groups that it makes, so torch's defaults are set. For joining, the short limit has held.
    """
    c10d = dist.distributed_c10d
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = limit
    c10d._get_default_store().set_timeout(limit)  # by which NCCL's communicators find each other
    c10d._set_pg_timeout(limit)


def _join_place() -> Place:
    """This process's place, from whatever launched it, left in the variables that torch reads."""
    here = place()
    if here.launcher == "none":
        here = replace(here, master_address="127.0.0.1", master_port=_free_port())
    if here.master_address is None or here.master_port is None:
        address, port = _master_by_mpi(here)
        here = replace(
            here,
            master_address=here.master_address or address,
            master_port=here.master_port or port,
        )
    os.environ |= here.variables()
    return here


def _master_by_mpi(here: Place) -> tuple[str, int]:
    """Rank 0's host and a free port of it, told to all by MPI: mpirun says neither."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "the launcher does not say where rank 0 runs, and mpi4py, which finds it, cannot be "
            f"used ({error}); install it (pip install 'cpo-ds[mpi]'), or put MASTER_ADDR and "
            f"MASTER_PORT into {ENVIRONMENT_FILE}."
        ) from None
    mine = (socket.gethostname(), _free_port()) if here.rank == 0 else None
    return MPI.COMM_WORLD.bcast(mine, root=0)


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
