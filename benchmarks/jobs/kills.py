"""A fixed schedule of kills, and the processes of a supervised run that they hit.

rank      the process of one rank; the ranks take turns
launcher  the process that started the ranks; they stay behind
host      all processes of the command at once, as if its host had lost power
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

VICTIMS = ("rank", "launcher", "host")


@dataclass(frozen=True)
class Kill:
    """A kill that is due at `seconds` after the first start."""

    seconds: float
    victim: str  # one of VICTIMS
    rank: int = 0  # of the victim `rank`

    def __str__(self) -> str:
        return f"rank {self.rank}" if self.victim == "rank" else self.victim


def schedule(
    every_seconds: float, ranks: int, victims: tuple[str, ...] = VICTIMS
) -> Iterator[Kill]:
    """Kills without an end, one each `every_seconds`; victims take turns, and so do ranks."""
    turns = dict.fromkeys(victims, 0)
    for number in count(1):
        victim = victims[(number - 1) % len(victims)]
        rank = ranks - 1 - turns[victim] % ranks if victim == "rank" else 0
        turns[victim] += 1
        yield Kill(number * every_seconds, victim, rank)


@dataclass(frozen=True)
class Process:
    """A process of the run, by /proc."""

    pid: int
    parent: int
    rank: int | None  # by its environment, which its children inherit


def marked_processes(mark: str) -> list[Process]:
    """The processes of this host whose environment has `mark`, a variable's name and value's start.

    It finds ranks that a launcher left behind too.
    """
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            # The name in parentheses may hold anything; state and parent follow it.
            state, parent = (
                (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            )
        except OSError:  # it has ended, or is another user's
            continue
        if state in "ZX" or not any(variable.startswith(mark) for variable in environment):
            continue
        ranks = [v.partition("=")[2] for v in environment if v.startswith("RANK=")]
        processes.append(Process(int(folder.name), int(parent), int(ranks[0]) if ranks else None))
    return processes


def victims_of(kill: Kill, processes: list[Process]) -> list[int]:
    """The processes that a kill hits; none if they do not run yet.

    A rank is a process with a rank whose parent has none: not one of its workers.
    """
    if kill.victim == "host":
        return [process.pid for process in processes]
    with_a_rank = {process.pid for process in processes if process.rank is not None}
    heads = [p for p in processes if p.rank is not None and p.parent not in with_a_rank]
    if kill.victim == "rank":
        return [process.pid for process in heads if process.rank == kill.rank]
    known = {process.pid for process in processes}
    return sorted({process.parent for process in heads} & known)


def kill_all(pids: list[int]) -> None:
    """kill -9 of these processes; those that have ended meanwhile are left out."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
