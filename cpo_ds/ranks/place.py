"""Where a launcher put this process among all, whichever launcher it was. No torch.

DeepSpeed's launcher (pdsh, one host) and torchrun say it in torch's own variables; mpirun and srun
in theirs. `place` says all of them in torch's.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from cpo_ds.errors import UserError

# What DeepSpeed's launcher carries to all hosts; the launch folder's wins over the home's.
ENVIRONMENT_FILE = ".deepspeed_env"


@dataclass(frozen=True)
class Place:
    """This process's place. `master_address` and `master_port` are None where nothing says them."""

    launcher: str
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # ranks on this host, as far as it is known
    master_address: str | None = None
    master_port: int | None = None

    def variables(self) -> dict[str, str]:
        """In the variables that torch reads; what is not known is left out."""
        known = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world_size,
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": self.master_port,
        }
        return {name: str(value) for name, value in known.items() if value is not None}


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """The place of the process with this environment. Raises `UserError` for half a place."""
    try:
        return _place(environment)
    except (KeyError, ValueError) as error:
        what = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"the launcher left this process without its place among the ranks: {what}; start it "
            "by deepspeed, torchrun, mpirun or srun, or without any launcher for one rank."
        ) from None


def _place(environment: Mapping[str, str]) -> Place:
    address = environment.get("MASTER_ADDR")
    port = int(environment["MASTER_PORT"]) if environment.get("MASTER_PORT") else None

    def number(name: str) -> int:
        return int(environment[name])

    if "RANK" in environment:
        on_host = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE")
        local_rank = number("LOCAL_RANK")
        return Place(
            "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed",
            number("RANK"),
            number("WORLD_SIZE"),
            local_rank,
            int(on_host or local_rank + 1),
            address,
            port,
        )
    if "OMPI_COMM_WORLD_RANK" in environment:
        names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
        rank, size, local_rank, local_size = (number(f"OMPI_COMM_WORLD_{name}") for name in names)
        return Place("mpirun", rank, size, local_rank, local_size, address, port)
    # Set for what srun starts, not for a batch script; a step of one task may be a shell.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        # Steps of one job may run beside each other on the same hosts.
        own_port = 20000 + (number("SLURM_JOB_ID") * 16 + number("SLURM_STEP_ID")) % 10000
        return Place(
            "srun",
            number("SLURM_PROCID"),
            number("SLURM_STEP_NUM_TASKS"),
            number("SLURM_LOCALID"),
            tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[number("SLURM_NODEID")],
            address or first_node(environment["SLURM_STEP_NODELIST"]),
            port or own_port,
        )
    return Place("none", master_address=address, master_port=port)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` -> [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def first_node(text: str) -> str:
    """The first name of Slurm's list of nodes: `gpu[03-05,9],b1` -> gpu03."""
    found = re.match(r"(?:[^\[\],]|\[[^\[\]]+\])+(?=,|$)", text)
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST is {text!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", found[0])


def interface_towards(master_address: str) -> str | None:
    """The network interface by which this host and the other hosts of a run reach each other.

    That is the one of the route to the master, and on the master that of its address. Where its
    name stands for the loopback address (Debian's /etc/hosts has 127.0.1.1 for the own name), it is
    the one of the first address that other hosts could reach. None where there is none, or where
    all ranks run on this host.
    """
    if master_address == "localhost" or _is_loopback(master_address):
        return None
    try:
        info = socket.getaddrinfo(master_address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(info[0], socket.SOCK_DGRAM) as probe:
            probe.connect(info[4])  # sends nothing; asks the kernel for the route
            mine = probe.getsockname()[0]
    except OSError:
        mine = ""
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = [
        (name, entry.address.split("%")[0])
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in families
    ]
    if mine and not _is_loopback(mine):
        return next((name for name, address in addresses if address == mine), None)
    up = psutil.net_if_stats()
    virtual = ("docker", "br-", "virbr", "veth")
    reachable = [
        name
        for name, address in addresses
        if not _is_loopback(address) and not address.startswith("fe80")
        if up[name.partition(":")[0]].isup and not name.startswith(virtual)
    ]
    return next(iter(reachable), None)


def choose_interface() -> None:
    """Has Gloo take the interface towards rank 0's host, unless one is set.

    By itself it takes that of the host's own name, which often is the loopback one.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = interface_towards(os.environ["MASTER_ADDR"])
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def take_environment_file() -> None:
    """Sets what `.deepspeed_env` says and nobody has set yet: only DeepSpeed's launcher reads it.

    Raises `UserError` for a file that is not as the launcher wants it.
    """
    for variable, value in environment_files().items():
        os.environ.setdefault(variable, value)


def environment_files() -> dict[str, str]:
    """What the `.deepspeed_env` of the home and of the launch folder set. Raises `UserError`."""
    name = os.environ.get("DS_ENV_FILE", ENVIRONMENT_FILE)
    values: dict[str, str] = {}
    for folder in (Path.home(), Path.cwd()):
        path = folder / name
        if path.is_file():
            try:
                values |= read_environment_file(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path}: {error}.") from None
    return values


def read_environment_file(text: str) -> dict[str, str]:
    """What `.deepspeed_env` sets. Raises `ValueError` where DeepSpeed's launcher would fail on it.

    One NAME=VALUE a line, taken as it is: no quotes, comments or empty lines.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ValueError(
                f"line {number} is {line!r} instead of NAME=VALUE; comments and empty lines are "
                "not taken"
            )
        values[name.strip()] = value.strip()
    return values
