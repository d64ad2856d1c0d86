"""Joins the ranks of a run and lets them agree with each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import deepspeed
import torch
import torch.distributed as dist

from cpo_ds.errors import UserError
from cpo_ds.ranks.environment_file import ENVIRONMENT_FILE
from cpo_ds.ranks.interfaces import choose_interface
from cpo_ds.ranks.limits import disk_problem
from cpo_ds.ranks.place import Place, place
from cpo_ds.ranks.roll_call import call_roll

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")

# Ranks wait for each other so long beyond the stall limit, in which the watch ends the run if no
# rank makes progress. One rank may verify, convert or save for hours while the others wait.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """One process among all ranks of a run, and its means to agree with the others."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: ProcessGroup | None = None  # all ranks, on the CPU; carries the agreements below
    hosts: tuple[str, ...] = ()  # the host of each rank, by name

    @property
    def on_this_host(self) -> list[int]:
        """The ranks of this host, this one among them."""
        return [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]

    def say(self, text: str) -> None:
        """Prints a text on rank 0 only."""
        if self.rank == 0:
            print(text, flush=True)

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on at least one rank; all ranks get the same answers."""
        values = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return [bool(value) for value in values.tolist()]

    def gather(self, value: Result) -> list[Result]:
        """Every rank's value, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait_for_all(self) -> None:
        """Waits until all ranks have called this."""
        dist.barrier(group=self.control)

    def on_first(self, function: Callable[[], Result]) -> Result:
        """Calls a function on rank 0 alone; all ranks get its result.

        If it raises `UserError`, all ranks raise the same error, and for `OSError` a `UserError`.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            outcome = list(_outcome(function))
        dist.broadcast_object_list(outcome, src=0, group=self.control)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def send_from_first(self, data: bytes | None, size: int) -> bytes:
        """Rank 0's `data`, `size` bytes, on all ranks; the others give None."""
        buffer = torch.empty(size, dtype=torch.uint8)
        if data is not None:
            buffer.numpy()[:] = memoryview(data)
        dist.broadcast(buffer, src=0, group=self.control)
        return buffer.numpy().tobytes() if data is None else data

    def on_each_host(self, function: Callable[[], Result]) -> Result:
        """Calls a function on the first rank of each host; the ranks of a host get its result.

        If it raises `UserError` or `OSError` on one host, all ranks of all hosts raise it, as in
        `on_first`.
        """
        first = self.on_this_host[0]
        outcomes = self.gather(_outcome(function) if self.rank == first else (None, None))
        error = next((error for _, error in outcomes if error is not None), None)
        if error is not None:
            raise error
        return outcomes[first][0]  # type: ignore[return-value]

    def per_folder(self, *, is_local: bool) -> Callable[[Callable[[], Result]], Result]:
        """`on_each_host` if each host has a folder of its own, `on_first` if all share one."""
        return self.on_each_host if is_local else self.on_first

    def everywhere(self, function: Callable[[], Result]) -> Result:
        """Calls a function on every rank; returns this rank's result.

        If it raises `UserError` or `OSError` on some ranks, all ranks raise the first one's error,
        as in `on_first`.
        """
        result, error = _outcome(function)
        errors = [error for error in self.gather(error) if error is not None]
        if errors:
            raise errors[0]
        return result


def _outcome(function: Callable[[], Any]) -> tuple[Any, UserError | None]:
    """The result of a function and None, or None and its error."""
    try:
        return function(), None
    except UserError as error:
        return None, error
    except OSError as error:
        return None, UserError(
            disk_problem(error) or f"{error.filename or error}: {error.strerror}."
        )


def init_ranks() -> Ranks:
    """Finds the other ranks and joins them.

    Raises `UserError` if this host has too few devices for its ranks, or if the port for joining is
    taken, and `ProcessLost` that names ranks that do not come.
    """
    own = find_place()
    roll = call_roll(own, None)
    ranks = join_ranks(own)
    del roll  # torch has opened its store again by now
    return ranks


def join_ranks(own: Place, stall_minutes: float | None = None) -> Ranks:
    """Joins the other ranks after the roll call.

    `stall_minutes` is the limit after which a watch ends the run; every group of ranks waits longer
    than that.
    """
    on_gpu = torch.cuda.is_available()

    # Choose this rank's device, and its share of the host's cores. With GPUs too: the update of an
    # offloaded optimizer runs on the CPU, on all ranks at once.
    device = torch.device("cuda", own.local_rank) if on_gpu else torch.device("cpu")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // own.local_world_size))
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        # DeepSpeed compiles this op at its first use. A build that is killed leaves a lock behind,
        # on which every later run waits for ever. Plain gloo works without the op.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    # Join all ranks in one process group.
    if own.world_size > own.local_world_size:
        choose_interface()
    backend = "nccl" if on_gpu else "gloo"
    _join_after_restart(backend, own, device if on_gpu else None)
    deepspeed.init_distributed(
        dist_backend=backend,
        verbose=False,
        rank=own.rank,
        world_size=own.world_size,
    )

    # Make the group for agreements, and exchange the names of hosts.
    _wait_longer(_PATIENCE + timedelta(minutes=stall_minutes or 0))
    control = dist.new_group(backend="gloo")
    hosts: list[Any] = [None] * own.world_size
    dist.all_gather_object(hosts, socket.gethostname(), group=control)
    return Ranks(own.rank, own.world_size, own.local_rank, device, control, tuple(hosts))


def _join_after_restart(backend: str, own: Place, gpu: torch.device | None) -> None:
    """Joins the other ranks if torchrun has restarted all of them.

    torchrun's store outlives the ranks and still holds the addresses of the old ones, to which the
    new ranks would try to connect for ever. So the new ranks store theirs under another prefix.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restarts == 0:
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"restart_{restarts}", dist.TCPStore(address, port))
    dist.init_process_group(
        backend, store=store, rank=own.rank, world_size=own.world_size, device_id=gpu
    )


def _wait_longer(limit: timedelta) -> None:
    """Sets how long every group of ranks waits for a rank, also groups that DeepSpeed makes later.

    torch's own limits, 10 minutes with NCCL, would end the ranks that wait for a hung one, or for
    one that reads or writes, before the watch can say which it is. DeepSpeed passes no limit on to
    the groups that it makes, so this sets torch's defaults. It is called after joining, for which
    torch's short limits are right.
    """
    c10d = dist.distributed_c10d
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = limit
    c10d._get_default_store().set_timeout(limit)  # NCCL's communicators find each other by it
    c10d._set_pg_timeout(limit)


def find_place() -> Place:
    """This process's place, completed and set in the variables that torch reads.

    Raises `UserError` if this host has too few devices for its ranks.
    """
    own = place()
    _check_devices(own.local_rank, own.local_world_size, torch.cuda.is_available())
    if own.launcher == "none":
        own = replace(own, master_address="127.0.0.1", master_port=_free_port())
    if own.master_address is None or own.master_port is None:
        address, port = _master_by_mpi(own)
        own = replace(
            own,
            master_address=own.master_address or address,
            master_port=own.master_port or port,
        )
    os.environ |= own.variables()
    return own


def _master_by_mpi(own: Place) -> tuple[str, int]:
    """Rank 0's host and a free port of it, sent to all ranks by MPI, since mpirun sets neither."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "the launcher does not say where rank 0 runs, and mpi4py, which finds it, cannot be "
            f"used ({error}); install it (pip install 'cpo-ds[mpi]'), or put MASTER_ADDR and "
            f"MASTER_PORT into {ENVIRONMENT_FILE}."
        ) from None
    master = (socket.gethostname(), _free_port()) if own.rank == 0 else None
    return MPI.COMM_WORLD.bcast(master, root=0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _check_devices(local_rank: int, local_world: int, on_gpu: bool) -> None:
    """Raises `UserError` if this host has too few devices for its ranks."""
    if on_gpu:
        devices, kind = torch.cuda.device_count(), "GPU"
        allowed = devices
    else:
        devices, kind = os.cpu_count() or 1, "CPU core"
        allowed = 2 * devices  # ranks may share cores to try things out; many more would only crawl
    if local_world > allowed or local_rank >= allowed:
        raise UserError(
            f"host {socket.gethostname()} was given {max(local_world, local_rank + 1)} ranks but "
            f"has {devices} {kind}{'s' if devices != 1 else ''}; lower --num_accelerators, or the "
            "slots of this host in the hostfile."
        )
