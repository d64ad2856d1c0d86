"""Network interfaces towards the master, and Slurm's lists of nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hosts.simulated import reason_against

from cpo_ds.ranks.place import first_node

NETWORK = """set -e
ip link add lan0 type veth peer name docker0
ip link add storage0 type veth peer name veth1
for name in lo lan0 docker0 storage0 veth1; do ip link set $name up; done
ip address add 172.17.0.1/16 dev docker0
ip address add 10.1.0.5/24 dev lan0 label lan0:1
ip address add 10.2.0.5/24 dev storage0
ip -6 address add fd00::5/64 dev storage0 nodad
ip route add default via 10.1.0.1
echo 127.0.1.1 master > "$1"; echo 10.2.0.9 worker >> "$1"; mount --bind "$1" /etc/hosts
"""
ASK = """
import sys; from cpo_ds.ranks.interfaces import interface_towards
print(*map(interface_towards, sys.argv[1:]))
"""


@pytest.mark.multinode
def test_interface_towards_the_master(tmp_path: Path) -> None:
    """Runs in a network namespace with the interfaces that a host of a cluster may have."""
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    expected = {
        "10.1.0.9": "lan0:1",  # Gloo finds an interface by this name, too
        "10.2.0.9": "storage0",
        "192.0.2.1": "lan0:1",
        "worker": "storage0",
        "fd00::9": "storage0",
        "10.2.0.5": "storage0",  # the master itself, whose route to itself is lo
        "master": "lan0:1",  # by its own name, on Debian
        "127.0.1.1": "None",
    }
    script = NETWORK + 'shift; exec "$@"'
    inside = ["unshare", "--net", "--mount", "bash", "-c", script, "bash", str(tmp_path / "hosts")]
    done = subprocess.run(
        [*inside, sys.executable, "-c", ASK, *expected],
        env=os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert dict(zip(expected, done.stdout.split(), strict=True)) == expected


def test_first_node_is_slurms(tmp_path: Path) -> None:
    if shutil.which("scontrol") is None:
        pytest.skip("needs scontrol (Debian: slurm-client)")
    (tmp_path / "slurm.conf").write_text("ClusterName=c\nSlurmctldHost=localhost\nNodeName=n1\n")
    environment = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    for text in ("a1", "gpu[03-05,9],b1", "r[01-02]n[4-7],r3n1", "x9,a[1-2]"):
        command = ["scontrol", "show", "hostnames", text]
        said = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert said.stdout.split()[:1] == [first_node(text)], said.stderr
