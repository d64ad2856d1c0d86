"""A command on several ranks: this process becomes DeepSpeed's launcher of the same command."""

from __future__ import annotations

import os
import socket
import sys

from cpo_ds.schema import UserError


def is_rank() -> bool:
    """Whether a launcher started this process as one of several ranks."""
    return "RANK" in os.environ


def become_ranks(python: str, argv: list[str], ranks: int, hostfile: str | None) -> None:
    """Replaces this process by `cpo-ds ARGV` under `python`, on several ranks; does not return.

    Nothing stands between a launcher and whoever started this, so that signals reach it. Raises
    `UserError` where it cannot be started.
    """
    command = [python, "-m"]
    if ranks > 1 or hostfile:
        command += ["deepspeed.launcher.runner", "-q", "--no_local_rank"]
        if hostfile:
            command += ["--hostfile", hostfile]
        else:
            command += ["--num_accelerators", str(ranks), "--master_port", str(_free_port())]
        command += ["--module"]
    sys.stdout.flush()
    os.environ["PATH"] = os.path.dirname(python) + os.pathsep + os.environ.get("PATH", "")
    try:
        os.execv(python, [*command, "cpo_ds.cli", *argv])
    except OSError as error:
        raise UserError(f"{python} cannot be started: {error.strerror}.") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
