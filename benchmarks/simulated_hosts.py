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
import ctypes
import fcntl
import functools
import os
import shutil
import signal
import string
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
NODE_LOCAL = Path("/node-local")  # where each host has a disk of its own
_PLACE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_NAMESPACES = ("--net", "--uts", "--ipc", "--pid", "--mount")
_CLONE_NEWPID = 0x20000000  # linux/sched.h
_SYSTEM_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"

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
    """A command that is over; `output` is what it printed, standard error included."""

    code: int
    output: str


@functools.cache
def reason_against() -> str | None:
    """Why hosts cannot be simulated here, or None where they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "simulated hosts need root"
    programs = ("bash", "ip", "tc", "unshare", "nsenter", "hostname", "ssh", "ssh-keygen", "sshd")
    missing = [name for name in (*programs, "pdsh") if _program(name) is None]
    if missing:
        return (
            f"simulated hosts need {', '.join(missing)} (Debian: iproute2, openssh-server, "
            "openssh-client, pdsh)"
        )
    trial = "ip link add eth0 type veth peer name port && ip link add switch type bridge"
    command = ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c", trial]
    tried = subprocess.run(command, capture_output=True, text=True)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@functools.cache
def reason_against_limits(*, delay: bool = True) -> str | None:
    """Why `limit` cannot be used here (with a delay, or for the rate alone), or None."""
    if (reason := reason_against()) is not None:
        return reason
    kinds = ["tbf rate 1mbit burst 32kb latency 1s", *(["netem delay 1ms"] if delay else [])]
    for kind in kinds:
        trial = f"ip link set lo up && tc qdisc add dev lo root {kind}"
        if subprocess.run(["unshare", "--net", "sh", "-c", trial], capture_output=True).returncode:
            return f"this kernel has no sch_{kind.split()[0]}"
    return None


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), _SYSTEM_PATH]))


@contextlib.contextmanager
def simulated_hosts(folder: Path, count: int = 2) -> Iterator[SimulatedHosts]:
    """`count` hosts with sshd running; they and all that runs in them end with the block.

    `folder` gets their configuration, keys and logs. Where `reason_against()` gives a reason, this
    raises `RuntimeError` with it.
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
    """Made by `simulated_hosts`. Hosts are named by their index."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.names = tuple(f"host-{letter}" for letter in string.ascii_lowercase[:count])
        self.addresses = tuple(f"10.77.0.{index + 1}" for index in range(count))
        path = os.pathsep.join([os.environ.get("PATH", ""), _SYSTEM_PATH])
        outside = {k: v for k, v in os.environ.items() if k not in _PLACE and k != "SSH_AUTH_SOCK"}
        self.environment = outside | {"PATH": path}
        self._switch: subprocess.Popen[str] | None = None
        self._hosts: list[subprocess.Popen[str]] = []
        self._started: list[subprocess.Popen[str]] = []

    def boot(self) -> None:
        """Starts the switch and the hosts, and joins them."""
        self._write_configuration()
        self._switch = _first_process(_SWITCH, ("--net", "--pid"), self.environment)
        for name in self.names:
            sshd = _program("sshd") or ""
            values = {"NAME": name, "FOLDER": str(self.folder), "SSHD": sshd}
            values["NODE_LOCAL"] = str(NODE_LOCAL)
            host = _first_process(_HOST, _NAMESPACES, self.environment | values)
            self._hosts.append(host)
        for index, address in enumerate(self.addresses):
            here, there = self._init(index), _init(self._switch)
            ends = f"eth0 netns {here} type veth peer name port{index} netns {there}"
            _check(["ip", "link", "add", *ends.split()])
            self._in_switch(f"ip link set port{index} master switch up")
            self._in_host(index, f"ip address add {address}/24 dev eth0")
            self._in_host(index, "ip link set eth0 up")

    def shut_down(self) -> None:
        """Ends all processes that were started here and those that they started."""
        for process in [*self._hosts, *([self._switch] if self._switch else [])]:
            _end(process)
        for process in self._started:  # has ended with its host
            process.wait()

    def start(
        self, host_index: int, command: Sequence[object], **environment: str
    ) -> subprocess.Popen[str]:
        """Starts a command in a host, in the repository's folder and in a session of its own."""
        init = self._init(host_index)
        enter = ["nsenter", f"--target={init}", "--net", "--uts", "--ipc", "--mount"]
        with _children_in(init):  # nsenter itself would fork, and keep signals from the command
            process = subprocess.Popen(
                [*enter, f"--wd={REPOSITORY}", *map(str, command)],
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
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
        """A hostfile of the first hosts with these slots."""
        path = self.folder / f"hostfile-{'-'.join(map(str, slots))}"
        lines = [f"{name} slots={n}" for name, n in zip(self.names, slots, strict=False)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def processes(self, host_index: int) -> list[psutil.Process]:
        """What runs in a host besides its first process."""
        init = self._init(host_index)
        here = os.readlink(f"/proc/{init}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if process.pid != init and os.readlink(f"/proc/{process.pid}/ns/pid") == here:
                    found.append(process)
        return found

    def kill(self, host_index: int) -> None:
        """Power loss: all of the host ends at once, and says nothing to the others."""
        self.cut(host_index)  # else the kernel would close its connections in good order
        _end(self._hosts[host_index])

    def cut(self, host_index: int) -> None:
        """Pulls the host's network cable."""
        self._in_switch(f"ip link set port{host_index} down")

    def mend(self, host_index: int) -> None:
        """Plugs the network cable in again."""
        self._in_switch(f"ip link set port{host_index} up")

    def limit(self, rate_mbit: float | None, delay_ms: float | None) -> None:
        """Limits every host's link, in either direction, to a rate (Mbit/s) and a one-way delay.

        The delay is between hosts, so a ping takes twice that. None takes a limit off.
        """
        bucket = f"tbf rate {rate_mbit}mbit burst 64kb latency 200ms" if rate_mbit else ""
        delay = f"netem delay {delay_ms}ms limit 100000" if delay_ms else ""
        for index in range(len(self.names)):
            in_host = functools.partial(self._in_host, index)
            for run, device in ((in_host, "eth0"), (self._in_switch, f"port{index}")):
                with contextlib.suppress(RuntimeError):  # there was no limit
                    run(f"tc qdisc del dev {device} root")
                if bucket:
                    run(f"tc qdisc add dev {device} root handle 1: {bucket}")
            if delay:
                parent = "parent 1:1" if bucket else "root"
                in_host(f"tc qdisc add dev eth0 {parent} {delay}")

    def _write_configuration(self) -> None:
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        for key in ("host_key", "user_key"):
            (folder / key).unlink(missing_ok=True)
            _check(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)])
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

    def _init(self, host_index: int) -> int:
        return _init(self._hosts[host_index])

    def _in_host(self, host_index: int, command: str) -> None:
        _check(["nsenter", f"--target={self._init(host_index)}", "--net", *command.split()])

    def _in_switch(self, command: str) -> None:
        assert self._switch is not None
        _check(["nsenter", f"--target={_init(self._switch)}", "--net", *command.split()])


def _first_process(
    script: str, namespaces: Sequence[str], environment: dict[str, str]
) -> subprocess.Popen[str]:
    """Starts a script in new namespaces and waits until it says that it is ready."""
    inside = ["--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["unshare", *namespaces, *inside, "bash", "-c", script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != "ready\n":
        _end(process)
        raise RuntimeError(f"a simulated host did not start: {said}{process.stdout.read()}")
    return process


def _init(process: subprocess.Popen[str]) -> int:
    """The process number, seen from here, of the first process that `unshare` started."""
    children = psutil.Process(process.pid).children()
    if not children:
        raise RuntimeError("this host was killed")
    return children[0].pid


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()  # --kill-child: takes the first process along, and that one the rest
    process.wait()


@contextlib.contextmanager
def _children_in(init: int) -> Iterator[None]:
    """Processes that this thread starts in this block belong to the process namespace of `init`."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/pid") as here, open(f"/proc/{init}/ns/pid") as there:
        if libc.setns(there.fileno(), _CLONE_NEWPID):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(here.fileno(), _CLONE_NEWPID)


@contextlib.contextmanager
def _node_local_folder() -> Iterator[None]:
    """The folder that the hosts mount their disks at; the last one who uses it removes it."""
    made = not NODE_LOCAL.exists()
    NODE_LOCAL.mkdir(exist_ok=True)
    descriptor = os.open(NODE_LOCAL, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # others use it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if made:
                NODE_LOCAL.rmdir()
        os.close(descriptor)


def _check(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
