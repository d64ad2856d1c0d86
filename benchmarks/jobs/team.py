"""The controllers of a benchmark's ranks: each rank that `deepspeed` launched runs one.

For one job after the other the controllers share values and start a worker each.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore

from cpo_ds.errors import UserError

_A_DAY = timedelta(days=1)


class Team:
    """The controllers of all ranks; a single process is a team of one."""

    def __init__(self) -> None:
        self.rank, self.world_size, self.local_rank = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
        self._store: TCPStore | None = None
        self._shared = 0
        if self.world_size > 1:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self._store = TCPStore(address, port, self.world_size, self.rank == 0, _A_DAY)

    def share(self, value: Any) -> list[Any]:
        """Returns every rank's value on every rank; all ranks must call it equally often."""
        if self._store is None:
            return [value]
        self._shared += 1
        self._store.set(f"{self._shared}/{self.rank}", json.dumps(value))
        names = [f"{self._shared}/{rank}" for rank in range(self.world_size)]
        return [json.loads(self._store.get(name)) for name in names]

    def prepare(self, function: Callable[[], str]) -> str:
        """Lets the first rank of each host make a path for its ranks. Raises `UserError`."""
        host, made, error = socket.gethostname(), "", ""
        if self.local_rank == 0:
            try:
                made = function()
            except UserError as problem:
                error = str(problem)
        everyone = self.share([host, made, error])
        for _, _, error in everyone:
            if error:
                raise UserError(error)
        return next(path for name, path, _ in everyone if name == host and path)

    def part(self) -> None:
        """Ends the team: rank 0 waits until all others are done, since it holds their store."""
        if self._store is None:
            return
        if self.rank:
            self._store.set(f"gone/{self.rank}", "")
        for rank in range(1, self.world_size if self.rank == 0 else 1):
            self._store.get(f"gone/{rank}")

    def raise_alarm(self, job: int) -> None:
        """Tells the other ranks that this rank's worker failed in a job; they stop waiting."""
        if self._store is not None:
            self._store.set(f"alarm/{job}", "failed")

    def hears_alarm(self, job: int) -> bool:
        """Whether any rank's worker failed in this job."""
        return self._store is not None and self._store.check([f"alarm/{job}"])
