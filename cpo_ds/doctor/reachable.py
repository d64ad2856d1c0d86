"""`cpo-ds doctor --reachable-only`: the hosts that can take part now, as a shorter hostfile."""

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


def run(ssh: Ssh, hosts: Sequence[Host], write: Path | None) -> int:
    """Prints which hosts can take part, and writes them. Raises `UserError` where none can."""
    with sessions(ssh, hosts) as party:
        answers = party.ask("devices")
        lost = party.lost
    counts = {
        host: f"{lost[host.name].what}; {lost[host.name].fix}"
        if host.name in lost
        else _gpus_or_problem(answers[host.name])
        for host in hosts
    }
    left, reasons = those_left(counts)
    for reason in reasons:
        print(reason)
    if not left:
        raise UserError(f"no host of {ssh.hostfile} can take part.")
    print(f"{len(left)} of {len(hosts)} hosts can take part: {fold(host.name for host in left)}")
    if write is not None:
        with writing(write) as unfinished:
            unfinished.write_text(hostfile_text(left), encoding="utf-8")
    return 0


def _gpus_or_problem(devices: dict[str, Any]) -> int | str:
    if devices["python"] != sys.executable:
        return f"it has no working {sys.executable}"
    return len(devices["gpus"])


def those_left(counts: Mapping[Host, int | str]) -> tuple[list[Host], list[str]]:
    """The hosts that can take part, with no more slots than GPUs, and what is said of others.

    A host without a GPU can where none has one.
    """
    any_gpu = any(isinstance(count, int) and count > 0 for count in counts.values())
    left, reasons = [], []
    for host, count in counts.items():
        if isinstance(count, str):
            reasons.append(f"left out: {host.name}: {count}")
        elif any_gpu and count == 0:
            reasons.append(f"left out: {host.name}: it shows no GPU; others do")
        elif any_gpu and count < host.slots:
            reasons.append(f"{host.name}: {count} slots instead of {host.slots}, as it has GPUs")
            left.append(replace(host, slots=count))
        else:
            left.append(host)
    return left, reasons
