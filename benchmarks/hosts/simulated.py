"""Hosts of a cluster on one machine, for tests and benchmarks of runs over several of them.

Each host has namespaces of its own for the network, the host's name, processes and mounts: its own
address on eth0, its own /etc/hosts, its own sshd that lets the other hosts in without a password,
its own /node-local, /dev/shm and /run. All other files, the processors and the clock are shared.
A switch (a bridge in a network namespace of its own) joins them; nothing is reached outside it.

The namespaces have no names: each lives as long as its first process, which ends when its standard
input is closed. So nothing stays behind, whatever becomes of the process that made the hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from hosts import namespaces
from hosts.namespaces import Namespaces

REPOSITORY = Path(__file__).resolve().parents[2]
NODE_LOCAL = Path("/node-local")  # each host has a disk of its own there
_RANK_VARIABLES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}
_RANK_VARIABLES |= {"SSH_AUTH_SOCK"}
_LARGEST_SEGMENT = 60000  # bytes: less than the burst of a limited link, which would cut it up

# The first process of a host. Its end is the end of all others in its process namespace.
_HOST = """set -e
hostname "$NAME"
mount --bind "$FOLDER/$NAME.hosts" /etc/hosts
mount --bind "$FOLDER/ssh_config" /etc/ssh/ssh_config
for own in /run /dev/shm "$NODE_LOCAL"; do mount -t tmpfs tmpfs "$own"; done
if [ -d ~/.ssh ]; then mount -t tmpfs tmpfs ~/.ssh; fi # keys and settings of whoever tests
ip link set lo up
mkdir /run/sshd
"$SSHD" -f "$FOLDER/$NAME.sshd_config" -E "$FOLDER/$NAME.sshd.log"
until [ -s /run/sshd.pid ]; do sleep 0.02; done
echo ready
read -r _
"""
_SWITCH = """set -e
ip link add switch type bridge
ip link set switch up
echo ready
read -r _
"""


@dataclass(frozen=True)
class Finished:
    """A command that is over; `output` is all that it printed, standard error included."""

    code: int
    output: str


def reason_against() -> str | None:
    """The reason why hosts cannot be simulated on this machine; None if they can."""
    return namespaces.reason_against(("ssh", "ssh-keygen", "sshd", "pdsh"))


@contextlib.contextmanager
def simulated_hosts(folder: Path, count: int = 2) -> Iterator[SimulatedHosts]:
    """Starts `count` hosts with sshd; they and their processes end with the block.

    `folder` gets their configuration, keys and logs. Raises `RuntimeError` if `reason_against()`
    gives a reason.
    """
    if (reason := reason_against()) is not None:
        raise RuntimeError(reason)
    hosts = SimulatedHosts(folder, count)
    try:
        with _node_local_folder():
            hosts.boot()
            yield hosts
    finally:
        hosts.shut_down()


class SimulatedHosts:
    """The hosts that `simulated_hosts` made; methods name a host by its index."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.names = tuple(f"host-{letter}" for letter in string.ascii_lowercase[:count])
        self.addresses = tuple(f"10.77.0.{index + 1}" for index in range(count))
        path = os.pathsep.join([os.environ.get("PATH", ""), namespaces.SYSTEM_PATH])
        self.environment = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES} | {
            "PATH": path
        }
        self._switch: Namespaces | None = None
        self._hosts: list[Namespaces] = []
        self._started: list[subprocess.Popen[str]] = []
        self._delay_line: subprocess.Popen[str] | None = None

    def boot(self) -> None:
        """Starts the switch and the hosts, and joins them."""
        self._write_configuration()
        self._switch = Namespaces(_SWITCH, ("net", "mount", "pid"), self.environment)
        values = {"FOLDER": str(self.folder), "NODE_LOCAL": str(NODE_LOCAL)}
        values["SSHD"] = namespaces.program("sshd") or ""
        for index, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            host = Namespaces(_HOST, namespaces.ALL, self.environment | values | {"NAME": name})
            self._hosts.append(host)
            peer = f"port{index} netns {self._switch.first}"
            host.configure(f"ip link add eth0 type veth peer name {peer}")
            self._switch.configure(f"ip link set port{index} master switch up")
            host.configure(f"ip address add {address}/24 dev eth0")
            host.configure(f"ip link set eth0 up gso_max_size {_LARGEST_SEGMENT}")

    def shut_down(self) -> None:
        """Ends all processes that were started here and those that they started."""
        for space in [*self._hosts, *([self._switch] if self._switch else [])]:
            space.end()
        for process in [*self._started, *([self._delay_line] if self._delay_line else [])]:
            process.wait()  # has ended with its host
            if process.stdout is not None:
                process.stdout.close()

    def start(
        self, host_index: int, command: Sequence[object], **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a command in a host, in the repository's folder and in a session of its own."""
        words, values = list(map(str, command)), self.environment | environment
        process = self._hosts[host_index].start(words, values, REPOSITORY)
        self._started.append(process)
        return process

    def run(
        self, host_index: int, command: Sequence[object], timeout: float = 240, **environment: str
    ) -> Finished:
        """Runs a command in a host to its end; raises `AssertionError` when the time is up."""
        process = self.start(host_index, command, **environment)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"still running after {timeout} s:\n{output}") from None
        return Finished(process.returncode, output)

    def write_hostfile(self, slots: Sequence[int]) -> Path:
        """Writes a hostfile of the first hosts with these slots; returns its path."""
        path = self.folder / f"hostfile-{'-'.join(map(str, slots))}"
        lines = [f"{name} slots={n}" for name, n in zip(self.names, slots, strict=False)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def processes(self, host_index: int) -> list[psutil.Process]:
        """Everything that runs in a host besides its first process."""
        return self._hosts[host_index].processes()

    def kill(self, host_index: int) -> None:
        """Ends all of a host at once, as a power loss does: it says nothing to the others."""
        self.cut(host_index)  # else the kernel would close its connections in good order
        self._hosts[host_index].end()

    def cut(self, host_index: int) -> None:
        """Pulls the host's network cable."""
        self._configure_switch(f"ip link set port{host_index} down")

    def mend(self, host_index: int) -> None:
        """Plugs the network cable in again."""
        self._configure_switch(f"ip link set port{host_index} up")

    def limit(self, rate_mbit: float | None, delay_ms: float | None) -> None:
        """Limits every host's link, in either direction, to a rate (Mbit/s) and a one-way delay.

        The delay is from host to host, so a ping takes twice that. None takes a limit off.
        """
        bucket = f"tbf rate {rate_mbit}mbit burst 64kb latency 200ms"
        for index, host in enumerate(self._hosts):
            for configure, device in (
                (host.configure, "eth0"),
                (self._configure_switch, f"port{index}"),
            ):
                with contextlib.suppress(RuntimeError):  # there was no limit
                    configure(f"tc qdisc del dev {device} root")
                if rate_mbit:
                    configure(f"tc qdisc add dev {device} root {bucket}")
        self._delay(delay_ms or 0)

    def _delay(self, milliseconds: float) -> None:
        """Moves the ports from the switch to the delay line, or back."""
        if self._delay_line is not None:
            self._delay_line.kill()
            self._delay_line.communicate()
            self._delay_line = None
        ports = [f"port{index}" for index in range(len(self._hosts))]
        for port in ports:
            self._configure_switch(
                f"ip link set {port} {'nomaster' if milliseconds else 'master switch'}"
            )
        if milliseconds:
            assert self._switch is not None
            script = [sys.executable, str(Path(__file__).with_name("delay_line.py"))]
            command = [*script, str(milliseconds), *ports]
            self._delay_line = self._switch.start(command, self.environment, REPOSITORY)
            assert self._delay_line.stdout is not None
            if (answer := self._delay_line.stdout.readline()) != "ready\n":
                raise RuntimeError(f"{answer}{self._delay_line.stdout.read()}")

    def _write_configuration(self) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for key in ("host_key", "user_key"):
            (folder / key).unlink(missing_ok=True)
            namespaces.check(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            )
        (folder / "ssh_config").write_text(
            f"Host *\nIdentityFile {folder}/user_key\nIdentitiesOnly yes\nLogLevel ERROR\n"
            "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
        )
        for name in self.names:
            # Debian gives the own name a loopback address.
            names = ["127.0.0.1 localhost", f"127.0.1.1 {name}"]
            others = zip(self.addresses, self.names, strict=True)
            names += [f"{address} {other}" for address, other in others if other != name]
            (folder / f"{name}.hosts").write_text("\n".join(names) + "\n")
            shutil.copy(folder / "user_key.pub", folder / f"{name}.authorized_keys")
            (folder / f"{name}.sshd_config").write_text(
                f"Port 22\nHostKey {folder}/host_key\nPidFile /run/sshd.pid\nStrictModes no\n"
                f"AuthorizedKeysFile {folder}/{name}.authorized_keys\nPermitRootLogin yes\n"
                "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
                "UseDNS no\nPrintMotd no\nMaxStartups 100\n"
            )

    def _configure_switch(self, command: str) -> None:
        assert self._switch is not None
        self._switch.configure(command)


@contextlib.contextmanager
def _node_local_folder() -> Iterator[None]:
    """Makes the folder at which hosts mount their disks; the last user removes it if it is ours."""
    ours = NODE_LOCAL / ".simulated_hosts"
    if not NODE_LOCAL.exists():
        NODE_LOCAL.mkdir(exist_ok=True)
        ours.touch()
    descriptor = os.open(NODE_LOCAL, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # others use it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours.unlink()
            NODE_LOCAL.rmdir()
        os.close(descriptor)
