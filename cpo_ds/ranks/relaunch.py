"""Runs a command on several ranks: this process becomes DeepSpeed's launcher of the command."""

from __future__ import annotations

import codecs
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cpo_ds.errors import UserError
from cpo_ds.ranks.place import place
from cpo_ds.ranks.quiet import silence_libraries

if TYPE_CHECKING:
    from cpo_ds.ranks.ranks import Ranks


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a program that a rank starts and that is none itself."""
    names = (
        "RANK", "WORLD_SIZE", "LOCAL_", "CROSS_", "MASTER_", "TORCHELASTIC_",
        "OMPI_COMM_WORLD_", "SLURM_STEP_NUM_TASKS",
    )  # fmt: skip
    return {key: value for key, value in environment.items() if not key.startswith(names)}


def is_rank() -> bool:
    """Whether a launcher started this process as one of several ranks."""
    return place().launcher != "none"


def become_ranks(python: str, argv: list[str], ranks: int, hostfile: str | None) -> None:
    """Replaces this process by `cpo-ds ARGV` under `python`, on several ranks; does not return.

    Since the process is replaced, signals reach the launcher directly. Raises `UserError` if it
    cannot be started.
    """
    _check(ranks, hostfile)

    # Put the command line together: the launcher, if there are several ranks, and the command.
    command = [python, "-m"]
    if ranks > 1 or hostfile:
        command += ["deepspeed.launcher.runner", "-q", "--no_local_rank"]
        if hostfile:
            command += ["--hostfile", _without_mark(hostfile)]
        else:
            command += ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
        command += ["--module"]
    command += ["cpo_ds.cli", *argv]

    os.environ.update(for_launcher(python))  # the new process inherits it
    sys.stdout.flush()
    try:
        os.execv(python, command)
    except OSError as error:
        raise UserError(f"{python} cannot be started: {error.strerror}.") from None


def for_launcher(python: str) -> dict[str, str]:
    """Variables for DeepSpeed's launcher of ranks that run under `python`."""
    variables = {"PATH": os.path.dirname(python) + os.pathsep + os.environ.get("PATH", "")}
    if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd")):
        # Else each process warns that it has no GPU.
        variables["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cpu")
    return variables


def _check(ranks: int, hostfile: str | None) -> None:
    """Raises `UserError` for options that the launcher would accept and the ranks would not."""
    if ranks > 1 and hostfile:
        raise UserError("give --ranks or --hostfile, not both; a hostfile sets how many there are.")
    if hostfile and not os.path.isfile(hostfile):
        raise UserError(f"--hostfile {hostfile} does not exist; correct it, or create the file.")
    if ranks > (most := 2 * (os.cpu_count() or 1)):
        raise UserError(f"--ranks {ranks} is too many for this host; at most {most}.")


def _without_mark(hostfile: str) -> str:
    """A path to the hostfile without the byte order mark that some editors add.

    DeepSpeed's launcher would take it for a part of the first host's name. The copy is in memory,
    open in the process that this one becomes.
    """
    content = Path(hostfile).read_bytes()
    if not content.startswith(codecs.BOM_UTF8):
        return hostfile
    descriptor = os.memfd_create("hostfile", flags=0)  # not closed when the process is replaced
    os.write(descriptor, content.removeprefix(codecs.BOM_UTF8))
    return f"/proc/self/fd/{descriptor}"


def free_port() -> int:
    """A TCP port that is free on this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def as_one_of_ranks() -> Iterator[Ranks]:
    """Joins the other ranks, or runs alone; leaves them at the end of the block.

    If all ranks raise the same error, rank 0 reports it; the others wait for the launcher to end
    them.
    """
    # torch and DeepSpeed read these variables when they are imported, so the imports come after.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    silence_libraries()
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from cpo_ds.ranks.ranks import init_ranks

    silence_libraries()  # again, since libraries set their levels when they are imported
    ranks = init_ranks()
    try:
        yield ranks
    except UserError as error:
        if ranks.rank:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's signal to the others
            time.sleep(10)
            raise UserError(f"(rank {ranks.rank}) {error}") from None
        raise
    ranks.wait_for_all()
    torch.distributed.destroy_process_group()
