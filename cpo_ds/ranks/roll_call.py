"""The roll call: ranks wait for each other before libraries join them, and name those that miss.

torch's own joining waits half an hour for a rank that never comes, and does not say which it is.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from cpo_ds.errors import ProcessLost, UserError
from cpo_ds.ranks.environment_file import ENVIRONMENT_FILE
from cpo_ds.ranks.place import Place
from cpo_ds.ranks.processes import RankProcess, own_process

_USUAL_MINUTES = 30.0  # as torch waits
_LEAST_MINUTES = 1.0  # on slow disks some ranks import their libraries later than others
# A rank that ends the roll call waits so long for the others to read its verdict.
_READING_SECONDS = 3.0

# The store raises one of these if the process that keeps it is gone or hangs.
NO_ANSWER = (OSError, RuntimeError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class RollCall:
    """All ranks of a run, which have found each other.

    Rank 0 keeps `beats`, a store for signs of life at `beats_port` of its host; it is None on the
    other ranks. `store` is open as long as this is held, so that torch can join by it.
    """

    rank: int
    processes: list[RankProcess]  # by rank
    beats_port: int
    beats: dist.TCPStore | None
    store: dist.Store


def call_roll(own: Place, minutes: float | None) -> RollCall:
    """Waits until all ranks are present, at most `minutes`, or half an hour if that is None.

    Raises `ProcessLost` that names the missing ranks, the same on all ranks, and `UserError` if the
    port for joining is taken.
    """
    limit = timedelta(minutes=max(minutes or _USUAL_MINUTES, _LEAST_MINUTES))
    beats = _open_beats(limit) if own.rank == 0 else None
    entry = _Entry(asdict(own_process(own.rank)), beats.port if beats else 0)
    # Another thread asks, since a store whose process is stopped may never answer.
    seconds = limit.total_seconds() + _READING_SECONDS
    try:
        store, missing, entries = in_thread(lambda: _attend(own, entry, limit), seconds)
    except NO_ANSWER as error:
        if "EADDRINUSE" in str(error):
            raise _port_is_taken() from None
        # torchrun, too, keeps the port on the host of rank 0.
        raise _lost(
            f"rank 0, which opens port {own.master_port} of {own.master_address} to them,", limit
        ) from None
    if missing:
        if own.rank == 0:
            time.sleep(_READING_SECONDS)  # the store ends with this process
        raise _lost(missing, limit)
    processes = [RankProcess(**entry.process) for entry in entries]
    return RollCall(own.rank, processes, entries[0].beats_port, beats, store)


@dataclass(frozen=True)
class _Entry:
    """What a rank tells the others of itself."""

    process: dict[str, Any]  # the fields of its `RankProcess`
    beats_port: int  # of rank 0


def _attend(own: Place, entry: _Entry, limit: timedelta) -> tuple[dist.Store, str, list[_Entry]]:
    """Waits for all ranks; returns the store, the names of missing ranks, and all entries if none.

    The first rank whose time is over decides which ranks are missing.
    """
    deadline = time.monotonic() + limit.total_seconds()
    store = _open_store(own, limit)
    keys = [f"rank/{rank}" for rank in range(own.world_size)]
    store.set(keys[own.rank], json.dumps(asdict(entry)))
    if store.add("present", 1) == own.world_size:
        store.set("missing", "none")
    try:
        store.wait(["missing"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
    except dist.DistStoreError:
        missing = [f"rank {rank}" for rank, key in enumerate(keys) if not store.check([key])]
        store.compare_set("missing", "", ", ".join(missing) or "none")
    if (names := store.get("missing").decode()) != "none":
        return store, names, []
    return store, "", [_Entry(**json.loads(text)) for text in store.multi_get(keys)]


def in_thread(function: Callable[[], Result], seconds: float) -> Result:
    """Calls a function in a thread of its own, which is left alone if it takes too long.

    Raises `TimeoutError` then, and whatever the function raises.
    """
    outcome: queue.Queue[tuple[Result | None, BaseException | None]] = queue.Queue()

    def call() -> None:
        try:
            outcome.put((function(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _open_store(own: Place, limit: timedelta) -> dist.Store:
    """The store at the port for joining, kept by rank 0 or by torchrun; torch opens it again.

    Raises `OSError` or `RuntimeError` if it does not open in time.
    """
    address, port = str(own.master_address), int(own.master_port or 0)
    keeps_it = own.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not keeps_it:
        _wait_for_port(address, port, limit.total_seconds())
    store = dist.TCPStore(
        address,
        port,
        None,
        keeps_it,
        limit,
        wait_for_workers=False,
        multi_tenant=True,
    )
    # torchrun's store may outlive ranks that it restarts.
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"roll_call_{restarts}", store)


def _wait_for_port(address: str, port: int, seconds: float) -> None:
    """Waits until a port is open. torch would print a stack trace if it does not open in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _open_beats(limit: timedelta) -> dist.TCPStore:
    address = os.environ["MASTER_ADDR"]
    return dist.TCPStore(address, 0, None, True, limit, wait_for_workers=False)


def _lost(names: str, limit: timedelta) -> ProcessLost:
    return ProcessLost(
        f"{names} did not join the other ranks within {limit.total_seconds() / 60:g} minutes "
        "(train.stall_minutes, at least 1): not started, stopped, or without a connection to them. "
        "If it gave a reason, that is on this console. Run the same command again."
    )


def _port_is_taken() -> UserError:
    return UserError(
        f"port {os.environ['MASTER_PORT']} of this host is taken, by another run perhaps; give "
        f"the launcher another --master_port (mpirun, srun: MASTER_PORT in {ENVIRONMENT_FILE})."
    )
