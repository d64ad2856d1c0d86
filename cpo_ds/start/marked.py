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

# For sh on another host. The arguments are the mark, a signal, and a pattern of a variable: all
# processes that have both get the signal. Fails if there are none.
_SEND = r"""
marked=$(grep -lsz "^$1\$" /proc/[0-9]*/environ | xargs -r grep -lsz "$3" | cut -d/ -f3)
[ -n "$marked" ] && kill -s "$2" $marked
"""


@dataclass(frozen=True)
class Marked:
    """The ranks that inherited a mark."""

    mark: str
    ssh_port: int | None = None

    def here(self) -> list[int]:
        """Process numbers of the ranks on this host, without processes that a rank started."""
        ranks = [pid for pid in self._marked() if _is_rank(pid)]
        return [pid for pid in ranks if not _is_rank(_parent(pid))]

    def ask(self, number: int, hosts: Sequence[str]) -> bool:
        """Sends a signal to the ranks of this host or of the first that has some.

        These ranks tell all others. Returns whether any rank was reached.
        """
        ranks = self.here()
        _send(ranks, number)
        return bool(ranks) or any(self._send_to(host, number, "^RANK=") for host in hosts)

    def kill(self, hosts: Sequence[str]) -> None:
        """Kills the ranks and their launchers on this host and the given ones."""
        _send(self._marked(), signal.SIGKILL)
        for host in hosts:
            self._send_to(host, signal.SIGKILL, "^")

    def _marked(self) -> list[int]:
        """Process numbers of all that inherited the mark on this host."""
        variable = f"{MARK}={self.mark}".encode()
        pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if variable in _environment(pid)]

    def _send_to(self, host: str, number: int, pattern: str) -> bool:
        port = ["-p", str(self.ssh_port)] if self.ssh_port else []
        options = ["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *port]
        name = signal.Signals(number).name.removeprefix("SIG")
        script = shlex.join(["sh", "-s", f"{MARK}={self.mark}", name, pattern])
        done = subprocess.run(
            ["ssh", *options, host, script], input=_SEND, text=True, capture_output=True
        )
        return done.returncode == 0


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


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
