"""This process's place among all ranks, as its launcher set it.

DeepSpeed's launcher (on one host or by pdsh) and torchrun use torch's own environment variables.
mpirun and srun use their own. `place` reads them all. This module does not import torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cpo_ds.errors import UserError

# Ports for rank 0 under srun, below those that Linux gives to outgoing connections (32768 on).
_FIRST_PORT, _NUM_PORTS = 20000, 10000


@dataclass(frozen=True)
class Place:
    """One process's place among all ranks; an address or port of None is not known yet."""

    launcher: str  # deepspeed, torchrun, mpirun, srun or none
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # ranks on this host, as far as it is known
    master_address: str | None = None
    master_port: int | None = None

    def variables(self) -> dict[str, str]:
        """The place as the environment variables that torch reads; unknown values are left out."""
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
    """The place of the process with this environment.

    Raises `UserError` if the launcher set some of its variables but not all.
    """
    try:
        return _place(environment)
    except (KeyError, ValueError) as error:
        problem = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"the launcher left this process without its place among the ranks: {problem}; start "
            "it by deepspeed, torchrun, mpirun or srun, or without any launcher for one rank."
        ) from None


def _place(environment: Mapping[str, str]) -> Place:
    """`place`, but raises `KeyError` for a missing variable and `ValueError` for a bad one."""
    address = environment.get("MASTER_ADDR")
    port = int(environment["MASTER_PORT"]) if environment.get("MASTER_PORT") else None

    def number(name: str) -> int:
        return int(environment[name])

    # Torch's variables win: deepspeed and torchrun may run inside a Slurm or MPI job.
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
    # srun sets this; a batch script has none. A step of one task may be an interactive shell.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        # Steps of one job may run side by side on the same hosts, so each has a port of its own.
        step = number("SLURM_JOB_ID") * 16 + number("SLURM_STEP_ID")
        return Place(
            "srun",
            number("SLURM_PROCID"),
            number("SLURM_STEP_NUM_TASKS"),
            number("SLURM_LOCALID"),
            tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[number("SLURM_NODEID")],
            address or first_node(environment["SLURM_STEP_NODELIST"]),
            port or _FIRST_PORT + step % _NUM_PORTS,
        )
    return Place("none", master_address=address, master_port=port)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` -> [2, 2, 2, 1]. Raises `ValueError` for anything else."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_node(text: str) -> str:
    """The first name in Slurm's list of nodes: `gpu[03-05,9],b1` -> gpu03.

    Raises `ValueError` for anything else.
    """
    match = re.match(r"(?:[^\[\],]|\[[^\[\]]+\])+(?=,|$)", text)  # up to a comma outside brackets
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST is {text!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match[0])  # of each bracket the first number
