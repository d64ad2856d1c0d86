"""Options of `cpo-ds doctor`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_doctor(commands: Any) -> None:
    """Adds `doctor` to `cpo-ds`."""

    def run(arguments: argparse.Namespace) -> int:
        from cpo_ds.hosts.doctor import run

        return run(arguments)

    about = "look at the hosts of a hostfile before a run: what is wrong, and what to do"
    doctor = commands.add_parser(
        "doctor",
        help=about,
        description=f"{about}. Exit code 2 where something has to be put right.",
        allow_abbrev=False,
    )
    doctor.set_defaults(run_command=run)
    add = doctor.add_argument
    add("--hostfile", required=True, type=Path, metavar="FILE", help="as the launcher takes it")
    add("--ssh-port", type=int, metavar="PORT", help="where sshd listens (as ssh has it)")
    add = doctor.add_argument_group("hosts that are left after a fault").add_argument
    add("--reachable-only", action="store_true", help="only log in, find Python and count GPUs")
    add("--write", type=Path, metavar="FILE", help="a hostfile of those that can take part")
