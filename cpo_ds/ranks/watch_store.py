"""The store in which all ranks leave signs of life and agree on why a run ends."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from cpo_ds.errors import EXIT_RANK_LOST
from cpo_ds.ranks.liveness import Beat
from cpo_ds.ranks.roll_call import RollCall

# The store raises one of these if rank 0's process, in which it lives, is gone or hangs.
NO_ANSWER = (TimeoutError, FutureTimeout, RuntimeError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Verdict:
    """The reason why the run ends, the same on all ranks: lost ranks, or one rank's error."""

    message: str
    lost: list[int] = field(default_factory=list)
    traceback: str = ""
    is_error: bool = False  # of one rank, which ends by itself
    code: int = EXIT_RANK_LOST  # of the processes that the verdict ends


class WatchStore:
    """The beats of all ranks and the verdict on the run, kept in rank 0's process.

    The watch does not use the process group's store, whose clients wait for each other. Every
    method may raise one of `NO_ANSWER`, after `timeout` seconds at the latest.
    """

    def __init__(self, roll: RollCall, timeout: float) -> None:
        self._rank, self._world_size, self._timeout = roll.rank, len(roll.processes), timeout
        self._port, self._opened = roll.beats_port, roll.beats
        self._worker = ThreadPoolExecutor(max_workers=1)  # one question at a time

    @property
    def _store(self) -> dist.TCPStore:
        """The store of rank 0; the other ranks connect to it at their first question."""
        if self._opened is None:
            limit = timedelta(seconds=self._timeout)
            host = os.environ["MASTER_ADDR"]
            self._opened = dist.TCPStore(host, self._port, None, False, limit)
        return self._opened

    def exchange(self, beat: Beat) -> tuple[dict[int, Beat], Verdict | None]:
        """Leaves this rank's beat; returns the latest beat of each rank, and the verdict if any."""

        def question() -> tuple[dict[int, Beat], Verdict | None]:
            self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))
            keys = [f"beat/{rank}" for rank in range(self._world_size)]
            beats = {
                rank: Beat(**json.loads(self._store.get(key)))
                for rank, key in enumerate(keys)
                if self._store.check([key])
            }
            if not self._store.check(["verdict"]):
                return beats, None
            return beats, Verdict(**json.loads(self._store.get("verdict")))

        return self._ask(question)

    def decide(self, verdict: Verdict, and_then: Callable[[bool], None] | None = None) -> bool:
        """Proposes a verdict; returns whether it is the first, which wins.

        The first thing that went wrong is the cause of all others. `and_then` gets the answer
        before any other thread of this process can ask the store its next question.
        """

        def question() -> bool:
            text = json.dumps(asdict(verdict))
            is_first = bool(self._store.compare_set("verdict", "", text).decode() == text)
            if and_then is not None:
                and_then(is_first)
            return is_first

        return self._ask(question)

    def mark_shown(self) -> None:
        """Records that rank 0 has printed the verdict."""
        self._ask(lambda: self._store.set("shown", ""))

    def is_shown(self) -> bool:
        """Whether rank 0 has printed the verdict."""
        return self._ask(lambda: self._store.check(["shown"]))

    def _ask(self, question: Callable[[], Result]) -> Result:
        """Asks in a thread of its own: the store may never answer, whatever its own timeout."""
        try:
            answer = self._worker.submit(question)
        except RuntimeError:  # Python is shutting down, by an error that it is about to print
            raise SystemExit from None
        # Wait a second at a time: if this process is suspended meanwhile, only a second has passed.
        for _ in range(math.ceil(self._timeout) - 1):
            with contextlib.suppress(FutureTimeout):
                return answer.result(1.0)
        return answer.result(1.0)
