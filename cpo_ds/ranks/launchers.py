"""The launchers above this process, and the end of a rank whose launcher is gone."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpo_ds.errors import EXIT_RANK_LOST
from cpo_ds.ranks.processes import is_alive, parent_and_start
from cpo_ds.ranks.stopping import StopRequest

_LOOK_SECONDS = 1.0
# After so long a rank that could not save and end by itself is ended.
_LAST_SECONDS = 50.0

# Programs and modules that stay as long as their ranks run. A shell, ssh, nohup, screen or a
# container's first process may leave while the run goes on, and Slurm ends what it started itself.
_LAUNCHERS = {
    "deepspeed", "ds", "deepspeed.launcher.runner", "deepspeed.launcher.launch",
    "torchrun", "torch.distributed.run", "torch.distributed.launch",
    "mpirun", "mpiexec", "orterun", "orted", "prterun", "prte", "prted",
    "mpiexec.hydra", "hydra_pmi_proxy",
    "cpo-ds", "cpo_ds.cli",  # as `cpo-ds train`
}  # fmt: skip


@dataclass(frozen=True)
class Launcher:
    """A process that started this one, directly or not."""

    name: str
    pid: int
    started: int  # in clock ticks since the host's start

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def launchers_above() -> list[Launcher]:
    """All launchers among the processes above this one, the nearest first."""
    launchers: list[Launcher] = []
    pid = os.getppid()
    while pid > 1:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            parent, started = parent_and_start(pid)
        except OSError:  # it has just ended, or belongs to another user
            break
        if (name := program(command)) in _LAUNCHERS:
            launchers.append(Launcher(name, pid, started))
        pid = parent
    return launchers


def program(command: Sequence[str]) -> str:
    """The name of the program that a command line runs; for Python the script's or module's."""
    name, *arguments = [Path(command[0]).name, *command[1:]]
    if not name.startswith("python"):
        return name
    for number, argument in enumerate(arguments):
        if argument == "-m":
            return "".join(arguments[number + 1 : number + 2])
        if not argument.startswith("-"):
            return Path(argument).name
    return name


def end_with(launchers: Sequence[Launcher], stop: StopRequest, *, is_shown: bool = True) -> None:
    """Asks for a stop once a launcher is gone, and ends this process within a minute.

    Nobody would wait for such ranks, and they would keep the run's folder from the next start.
    `is_shown` is whether this rank's messages reach the console. A rank whose messages do not gives
    the one whose messages do the time to look and to say it, since all end together.
    """
    if launchers:
        arguments = (launchers, stop, is_shown)
        threading.Thread(target=_wait_for_end, args=arguments, daemon=True).start()


def _wait_for_end(launchers: Sequence[Launcher], stop: StopRequest, is_shown: bool) -> None:
    while not (gone := [one for one in launchers if not is_alive(one.pid, one.started)]):
        time.sleep(_LOOK_SECONDS)
    names = ", ".join(map(str, gone))
    print(
        f"\ncpo_ds: the launcher {names} is gone; saving and ending.", file=sys.stderr, flush=True
    )
    if not is_shown:
        time.sleep(2 * _LOOK_SECONDS)
    stop.ask(f"the end of {names}")
    time.sleep(_LAST_SECONDS)
    print("\ncpo_ds: stopped: the launcher is gone, and this rank could not end its step and save "
          f"within {_LAST_SECONDS:g} s.", file=sys.stderr, flush=True)  # fmt: skip
    os._exit(EXIT_RANK_LOST)
