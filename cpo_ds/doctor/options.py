"""Options of `cpo-ds doctor`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(arguments: argparse.Namespace) -> int:
    """`cpo-ds doctor`."""
    from cpo_ds.doctor import command

    return command.run(arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds doctor`."""
    parser.description = (
        f"{parser.description} Exit code 2 where something has to be put right. Recipe options as "
        "in training (--config, --section.field value) have its files looked at too."
    )
    add = parser.add_argument
    add("--hostfile", required=True, type=Path, metavar="FILE", help="as the launcher takes it")
    add("--ssh-port", type=int, metavar="PORT", help="where sshd listens (as ssh has it)")
    add("--launcher", choices=("pdsh", "openmpi"), default="pdsh", help="of the run (pdsh)")
    add("--master-addr", metavar="ADDRESS", help="of the run (as its launcher finds it)")
    add("--master-port", type=int, metavar="PORT", default=29500, help="of the run (29500)")
    add("--need-disk", type=float, metavar="GIB", default=20.0, help="warn below it (20)")
    add("--need-memory", type=float, metavar="GIB", default=8.0, help="warn below it (8)")
    add("--json", action="store_true", help="print JSON instead of a table")
    add = parser.add_argument_group("bandwidth of all-reduces").add_argument
    add("--skip-bandwidth", action="store_true", help="measure none")
    add("--size", type=int, metavar="MIB", default=64, help="of what is summed (64)")
    add("--limit", type=int, metavar="SECONDS", default=180, help="for all of it (180)")
    add = parser.add_argument_group("hosts that are left after a fault").add_argument
    add("--reachable-only", action="store_true", help="only log in, find Python and count GPUs")
    add("--write", type=Path, metavar="FILE", help="a hostfile of those that can take part")
