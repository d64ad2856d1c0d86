"""The command `cpo-ds doctor`: asks every host at once, prints what is wrong and what to do."""

from __future__ import annotations

import argparse

from cpo_ds.hosts import reachable
from cpo_ds.hosts.hostfile import read_hostfile
from cpo_ds.hosts.sessions import Ssh
from cpo_ds.places import environment_files


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises `UserError` for a hostfile that is none."""
    hosts = read_hostfile(arguments.hostfile)
    ssh = Ssh(arguments.hostfile, arguments.ssh_port, environment_files())
    return reachable.run(ssh, hosts, arguments.write)
