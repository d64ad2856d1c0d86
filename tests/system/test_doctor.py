"""`cpo-ds doctor` on simulated hosts: their faults are named."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest
from hosts import simulated as simulated_hosts
from hosts.simulated import SimulatedHosts


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedHosts]:
    if (reason := simulated_hosts.reason_against()) is not None:
        pytest.skip(reason)
    with simulated_hosts.simulated_hosts(tmp_path_factory.mktemp("hosts")) as started:
        yield started


SCRIPT = launch.ROOT / "scripts" / "check_hosts.sh"


def check_hosts(hosts: SimulatedHosts, *arguments: object) -> simulated_hosts.Finished:
    """`scripts/check_hosts.sh ...` on the first host."""
    return hosts.run(0, ["bash", SCRIPT, *arguments])


def on_second(hosts: SimulatedHosts, command: str) -> None:
    done = hosts.run(1, ["bash", "-ec", command])
    assert done.code == 0, done.output


@pytest.mark.multinode
def test_two_hosts_are_well(hosts: SimulatedHosts, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    recipe = ["--config", "recipes/demo.yaml", "--model.name_or_path", tmp_path / "model"]
    recipe += ["--output-dir", tmp_path / "runs" / "x"]
    done = check_hosts(hosts, hosts.write_hostfile([2, 1]), "--json", "--size", 1, *recipe)
    said = json.loads(done.output)
    assert done.code == 0 and said["fine"], done.output
    assert [host["answered"] for host in said["hosts"]] == [True, True]
    assert {row["check"] for row in said["checks"]} >= {"login", "model", "folder", "ports"}
    assert all(row["state"] in ("ok", "warn") for row in said["checks"]), done.output
    measured = {(link["kind"], *link["hosts"]) for link in said["bandwidth"]}
    assert measured == {("within", "host-a"), ("link", *hosts.names), ("all", *hosts.names)}
    assert all(link["gib_per_second"] > 0 for link in said["bandwidth"])
    assert not (tmp_path / "runs").exists(), "what was made to try the folder has to go"


@pytest.mark.multinode
def test_faults_of_a_host_are_named(hosts: SimulatedHosts, tmp_path: Path) -> None:
    """On host-b: another torch, other code, no model, a folder of its own, too many slots."""
    # Spoil host-b: files and folders of its own are mounted over the shared ones.
    mounted = {
        "cpo_ds/losses.py": (launch.ROOT / "cpo_ds" / "losses.py", "# changed\n"),
        "METADATA": (torch_metadata(), "Metadata-Version: 2.1\nName: torch\nVersion: 2.0.1\n"),
    }
    for name, (path, text) in mounted.items():
        (tmp_path / Path(name).name).write_text(text)
        on_second(hosts, f"mount --bind '{tmp_path / Path(name).name}' '{path}'")
    (tmp_path / "model").mkdir()
    (tmp_path / "empty").mkdir()
    on_second(hosts, f"mount --bind '{tmp_path / 'empty'}' '{tmp_path / 'model'}'")
    (tmp_path / "model" / "config.json").write_text("{}")
    recipe = ["--config", "recipes/demo.yaml", "--model.name_or_path", tmp_path / "model"]
    options = ["--output-dir", simulated_hosts.NODE_LOCAL / "runs"]
    # Hold a port on host-a.
    busy = hosts.start(0, [sys.executable, "-c", HOLD_A_PORT])
    assert busy.stdout is not None
    port = busy.stdout.readline().strip()
    try:
        hostfile = hosts.write_hostfile([1, 90])
        options += ["--master-port", port, "--need-disk", 0]
        done = check_hosts(hosts, hostfile, *recipe, *options)
    finally:
        os.killpg(busy.pid, signal.SIGKILL)
        for path in (*(path for path, _ in mounted.values()), tmp_path / "model"):
            on_second(hosts, f"umount '{path}'")
    # Every fault is named.
    assert done.code == 2
    text = " ".join(done.output.split())
    for said in (
        "host-b: torch 2.0.1 instead of",
        "host-b: the code differs from that on host-a: losses.py",
        f"host-b: there is no {tmp_path / 'model'}",
        f"host-b: 90 slots for {os.cpu_count()} CPU cores",
        f"in {hostfile}:2",
        "/node-local/runs is not shared by all hosts: host-a sees the files of host-a",
        f"host-a: port {port} cannot be opened: address already in use",
        "not measured before the errors are fixed",
    ):
        assert said in text, done.output
    assert text.count(" -> ") == 6


HOLD_A_PORT = """
import socket, time
listener = socket.socket()
listener.bind(("", 0))
listener.listen()
print(listener.getsockname()[1], flush=True)
time.sleep(120)
"""


def torch_metadata() -> Path:
    from importlib import metadata

    return Path(str(metadata.distribution("torch").locate_file("")), next(
        str(file) for file in metadata.files("torch") or () if file.name == "METADATA"
    ))  # fmt: skip


@pytest.mark.multinode
def test_hosts_that_cannot_be_reached_are_named(hosts: SimulatedHosts, tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("host-x slots=1\nhost-b slots=1\nhost-a slots=1\n")
    keys = hosts.folder / "host-b.authorized_keys"
    kept = keys.read_text()
    keys.write_text("")
    shorter = tmp_path / "new" / "shorter"
    try:
        done = check_hosts(hosts, hostfile)
        quick = check_hosts(hosts, hostfile, "--reachable-only", "--write", shorter)
    finally:
        keys.write_text(kept)
    assert done.code == 2 and "fix   login          1 of 3 hosts" in done.output, done.output
    text = " ".join(done.output.split())
    assert "host-x: ssh does not know this name" in text and f"{hostfile}:1" in text
    assert "host-b: it refuses the login" in text and "ssh-copy-id host-b" in text
    assert quick.code == 0 and "left out: host-b: it refuses the login" in quick.output
    assert shorter.read_text() == "host-a slots=1\n"


@pytest.mark.multinode
def test_a_host_without_the_environment_is_named(hosts: SimulatedHosts, tmp_path: Path) -> None:
    venv = Path(sys.executable).parent.parent
    on_second(hosts, f"mount --bind '{tmp_path}' '{venv}'")
    try:
        hostfile = hosts.write_hostfile([1, 1])
        done = check_hosts(hosts, hostfile)
        nobody = tmp_path / "only-b"
        nobody.write_text("host-b slots=1\n")
        quick = check_hosts(hosts, nobody, "--reachable-only", "--write", tmp_path / "none")
    finally:
        on_second(hosts, f"umount '{venv}'")
    assert done.code == 2 and f"host-b: there is no working {sys.executable}" in done.output
    assert quick.code == 2 and "no host of" in quick.output and "Traceback" not in quick.output
    assert not (tmp_path / "none").exists()


def test_the_script_says_what_it_needs() -> None:
    for arguments, code, said in (([], 2, "give a hostfile"), (["--help"], 0, "--hostfile FILE")):
        done = launch.finish(launch.start(["bash", str(SCRIPT), *arguments]))
        assert done.code == code and said in done.output


def test_no_torch_for_the_hosts_that_are_left(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("-\n")
    code = "import sys; from cpo_ds import cli; from cpo_ds.doctor import command\n"
    code += f"assert cli.main(['doctor', '--hostfile', {str(tmp_path / 'hosts')!r}]) == 2\n"
    code += "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    done = launch.finish(launch.start([sys.executable, "-c", code]))
    assert done.code == 0, done.output
