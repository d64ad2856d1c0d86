"""Errors of ssh, explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ds.doctor import sessions
from cpo_ds.doctor.hostfile import Host


@pytest.mark.parametrize(
    "errors, problem, fix",
    [
        ("ssh: Could not resolve hostname h: Name or service not known", "this name", "hosts:3"),
        ("me@h: Permission denied (publickey).", "refuses the login", "ssh-copy-id h"),
        ("ssh: connect to host h port 22: Connection refused", "no ssh server", "--ssh-port"),
        ("ssh: connect to host h port 22: Connection timed out", "not answer", "is up"),
        ("ssh: connect to host h port 22: No route to host", "no route", "its network"),
        ("No ED25519 host key is known for h\nHost key verification failed.", "know its", "once"),
        ("WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
         "not the one", "ssh-keygen -R h"),
        ("kex_exchange_identification: Connection closed by remote host", "closes", "MaxStartups"),
        ("sh: 1: exec: python3: not found", "neither", "scripts/setup.sh"),
        ("a motd\nsomething new", "its last line was: something new", "ssh h true"),
    ],
)  # fmt: skip
def test_what_ssh_says_is_explained(errors: str, problem: str, fix: str) -> None:
    said = sessions.explain(Host("h", 1, 3), errors, Path("hosts"))
    assert problem in said[0] and fix in said[1]
