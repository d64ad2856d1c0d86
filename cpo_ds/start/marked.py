"""The ranks of a run on any host, found by a variable that they inherit, and signals to them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpo_ds.ranks.processes import parent_and_start

# DeepSpeed's launchers copy variables whose names begin with PYTHON to all hosts.
MARK = "PYTHON_CPO_DS_LAUNCH"

# For sh on another host, with the mark and a signal as arguments. Fails if there is no rank.
_SEND = r"""
ranks=$(grep -lsz "^$1\$" /proc/[0-9]*/environ | xargs -r grep -lsz "^RANK=" | cut -d/ -f3)
[ -n "$ranks" ] && kill -s "$2" $ranks
"""


@dataclass(frozen=True)
class Marked:
    """The ranks that inherited a mark."""

    mark: str
    ssh_port: int | None = None

    def here(self) -> list[int]:
        """Process numbers of the ranks on this host, without processes that a rank started."""
        variable = f"{MARK}={self.mark}".encode()
        ranks = []
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            if variable in _environment(pid) and _is_rank(pid) and not _is_rank(_parent(pid)):
                ranks.append(pid)
        return ranks

    def send(self, number: int, hosts: Sequence[str], *, to_all: bool = False) -> bool:
        """Sends a signal to the ranks of this host or of the first that has some.

        These ranks tell all others. With `to_all` each of the hosts gets it. Returns whether any
        rank was reached.
        """
        ranks = self.here()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if ranks and not to_all:
            return True
        reached = bool(ranks)
        for host in hosts:
            reached |= self._send_to(host, number)
            if reached and not to_all:
                break
        return reached

    def _send_to(self, host: str, number: int) -> bool:
        port = ["-p", str(self.ssh_port)] if self.ssh_port else []
        options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *port]
        name = signal.Signals(number).name.removeprefix("SIG")
        script = shlex.join(["sh", "-s", f"{MARK}={self.mark}", name])
        done = subprocess.run(
            ["ssh", *options, host, script], input=_SEND, text=True, capture_output=True
        )
        return done.returncode == 0


def _environment(pid: int) -> list[bytes]:
    """Variables of a process; none if it has ended, or belongs to another user."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        return parent_and_start(pid)[0]
    except (OSError, ValueError):
        return 0


def _is_rank(pid: int) -> bool:
    return any(variable.startswith(b"RANK=") for variable in _environment(pid))
