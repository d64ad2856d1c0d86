"""Linux namespaces that live as long as the first process in them; simulated hosts use them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

ALL = ("net", "uts", "ipc", "mount", "pid")
SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_CLONE_NEWPID = 0x20000000  # linux/sched.h


class Namespaces:
    """New namespaces, and a shell script as the first process in them.

    The script prints `ready` and then waits for the end of its input, which comes with the end of
    this process at the latest. All other processes in its process namespace end with it.
    """

    def __init__(self, script: str, kinds: Sequence[str], environment: dict[str, str]) -> None:
        self._kinds = kinds
        self._unshare = subprocess.Popen(
            [*_unshare(kinds), "bash", "-c", script],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._unshare.stdout is not None
        answer = self._unshare.stdout.readline()
        if answer != "ready\n":
            self.end()
            raise RuntimeError(f"a simulated host did not start: {answer}")
        self.first = psutil.Process(self._unshare.pid).children()[0].pid  # as seen from outside

    def end(self) -> None:
        """Kills all processes in the namespaces, and with them the namespaces."""
        self._unshare.kill()  # takes the first process along, and that one the rest
        self._unshare.communicate()

    def start(
        self, command: Sequence[str], environment: dict[str, str], folder: Path
    ) -> subprocess.Popen[str]:
        """Starts a command inside, in a folder and in a session of its own."""
        enter = [f"--{kind}" for kind in self._kinds if kind != "pid"]
        with _children_in(self.first):  # nsenter would fork, and keep signals from the command
            return subprocess.Popen(
                ["nsenter", f"--target={self.first}", *enter, f"--wd={folder}", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )

    def configure(self, command: str) -> None:
        """Runs `ip` or `tc` on the network namespace. Raises `RuntimeError` if it fails."""
        check(["nsenter", f"--target={self.first}", "--net", *command.split()])

    def processes(self) -> list[psutil.Process]:
        """Everything that runs inside besides the first process."""
        namespace = os.readlink(f"/proc/{self.first}/ns/pid")
        inside_processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                inside = os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
                if inside and process.pid != self.first:
                    inside_processes.append(process)
        return inside_processes


@functools.cache
def reason_against(programs: Sequence[str]) -> str | None:
    """The reason why hosts cannot be simulated on this machine; None if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "simulated hosts need root"
    needed = ("bash", "ip", "tc", "unshare", "nsenter", "hostname", *programs)
    if missing := [name for name in needed if program(name) is None]:
        return (
            f"simulated hosts need {', '.join(missing)} (Debian: iproute2, openssh-client, "
            "openssh-server, pdsh)"
        )
    trial = (
        "ip link add eth0 type veth peer name port && ip link add switch type bridge && "
        "tc qdisc add dev eth0 root tbf rate 1mbit burst 32kb latency 1s"
    )
    tried = subprocess.run([*_unshare(ALL), "sh", "-c", trial], capture_output=True, text=True)
    return f"simulated hosts: {tried.stderr.strip()}" if tried.returncode else None


def program(name: str) -> str | None:
    """The path of a program, searched for in the administrators' folders too."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), SYSTEM_PATH]))


def check(command: Sequence[str]) -> None:
    """Runs a command; raises `RuntimeError` with its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def _unshare(kinds: Sequence[str]) -> list[str]:
    return ["unshare", *(f"--{kind}" for kind in kinds), "--fork", "--kill-child", "--mount-proc"]


@contextlib.contextmanager
def _children_in(first: int) -> Iterator[None]:
    """Puts processes that this thread starts meanwhile into the process namespace of `first`."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/pid") as own, open(f"/proc/{first}/ns/pid") as target:
        if libc.setns(target.fileno(), _CLONE_NEWPID):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(own.fileno(), _CLONE_NEWPID)
