"""`cpo-ds doctor --reachable-only`: a shorter hostfile of the hosts that can take part now."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cpo_ds.doctor.hostfile import Host, fold, hostfile_text
from cpo_ds.doctor.sessions import Ssh, sessions
from cpo_ds.errors import UserError
from cpo_ds.storage.files import writing


def run(ssh: Ssh, hosts: Sequence[Host], output: Path | None) -> int:
    """Prints which hosts can take part, and writes them to `output` as a hostfile.

    Returns the exit code 0. Raises `UserError` if no host can take part.
    """
    # Ask each host for its Python and GPUs.
    with sessions(ssh, hosts) as group:
        answers = group.ask("devices")
        lost = group.lost
    counts = {
        host: f"{lost[host.name].problem}; {lost[host.name].fix}"
        if host.name in lost
        else _gpus_or_problem(answers[host.name])
        for host in hosts
    }

    # Name the hosts that are left out, then those that are left.
    usable, reasons = usable_hosts(counts)
    for reason in reasons:
        print(reason)
    if not usable:
        raise UserError(f"no host of {ssh.hostfile} can take part.")
    names = fold(host.name for host in usable)
    print(f"{len(usable)} of {len(hosts)} hosts can take part: {names}")
    if output is not None:
        with writing(output) as unfinished:
            unfinished.write_text(hostfile_text(usable), encoding="utf-8")
    return 0


def _gpus_or_problem(devices: dict[str, Any]) -> int | str:
    if devices["python"] != sys.executable:
        return f"it has no working {sys.executable}"
    return len(devices["gpus"])


def usable_hosts(counts: Mapping[Host, int | str]) -> tuple[list[Host], list[str]]:
    """Returns the hosts that can take part, and a message about each host that changes.

    `counts` holds each host's number of GPUs, or its problem. A host with fewer GPUs than slots
    gets fewer slots. A host without a GPU can take part only if no host has one.
    """
    any_gpu = any(isinstance(count, int) and count > 0 for count in counts.values())
    usable, reasons = [], []
    for host, count in counts.items():
        if isinstance(count, str):
            reasons.append(f"left out: {host.name}: {count}")
        elif any_gpu and count == 0:
            reasons.append(f"left out: {host.name}: it has no GPU, but other hosts have some")
        elif any_gpu and count < host.slots:
            reasons.append(f"{host.name}: {count} slots instead of {host.slots}, one for each GPU")
            usable.append(replace(host, slots=count))
        else:
            usable.append(host)
    return usable, reasons
