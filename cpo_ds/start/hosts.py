"""A short check of the hosts of a hostfile before a run is started on them."""

from __future__ import annotations

import argparse
import shutil
import time

from cpo_ds.doctor import command as doctor
from cpo_ds.doctor.gather import gather
from cpo_ds.doctor.hostfile import read_hostfile
from cpo_ds.doctor.sessions import Ssh, sessions
from cpo_ds.doctor.table import report
from cpo_ds.errors import UserError
from cpo_ds.ranks.console import print_colored
from cpo_ds.ranks.environment_file import read_environment_files


def check_hosts(arguments: argparse.Namespace) -> None:
    """Runs the checks of `cpo-ds doctor` that take seconds; prints only what is wrong.

    `arguments` are those of `cpo-ds train`. Raises `UserError` if a run would fail on the hosts.
    """
    started = time.monotonic()
    options = _options(arguments)
    hosts, environment = read_hostfile(options.hostfile), read_environment_files()
    planned = doctor.planned_run(options, environment)
    ssh = Ssh(options.hostfile, options.ssh_port, doctor.exported(environment))
    with sessions(ssh, hosts) as group:
        rows = doctor.judge(gather(group, hosts, planned))
    if wrong := [row for row in rows if row.findings]:
        print_colored(report(wrong, min(shutil.get_terminal_size((100, 24)).columns, 120)))
    if any(row.state == "fix" for row in rows):
        raise UserError(
            "not started, because of the errors above; fix them, or give --skip-check. "
            f"cpo-ds doctor --hostfile {options.hostfile} checks more."
        )
    slots = sum(host.slots for host in hosts)
    print(
        f"cpo-ds train: {len(hosts)} host(s) with {slots} slots, checked in "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )


def _options(arguments: argparse.Namespace) -> argparse.Namespace:
    """The options of `cpo-ds doctor` for the same hosts and recipe."""
    parser = argparse.ArgumentParser()
    doctor.add_options(parser)
    values = ["--hostfile", str(arguments.hostfile)]
    for name in ("ssh_port", "master_addr", "master_port"):
        if (value := getattr(arguments, name)) is not None:
            values += [f"--{name.replace('_', '-')}", str(value)]
    options = parser.parse_args(values)
    options.recipe = [argument for argument in arguments.recipe if argument != "--verbose"]
    return options
