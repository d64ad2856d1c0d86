"""Which process is which rank, as each launcher says it, and what `.deepspeed_env` sets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_hosts import reason_against

from cpo_ds.errors import UserError
from cpo_ds.ranks.place import (
    Place,
    first_node,
    interface_towards,
    place,
    read_environment_file,
    take_environment_file,
    tasks_per_node,
)

# What Slurm 22.05 sets in a batch script on two nodes, and adds in a step of three tasks.
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
STEP = BATCH | {
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "3",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
SHELL = STEP | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
MASTER = {"MASTER_ADDR": "gpu07", "MASTER_PORT": "29500"}

EXPECTED = {
    "nothing": ({}, Place("none")),
    "deepspeed": (
        TORCH | MASTER | {"LOCAL_SIZE": "2"},
        Place("deepspeed", 3, 4, 1, 2, "gpu07", 29500),
    ),
    "torchrun": (
        TORCH | MASTER | {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"},
        Place("torchrun", 3, 4, 1, 2, "gpu07", 29500),
    ),
    "torch's variables by hand": (
        TORCH | MASTER,
        Place("deepspeed", 3, 4, 1, 2, "gpu07", 29500),
    ),
    "mpirun": (MPI, Place("mpirun", 3, 4, 1, 2)),
    "mpirun, the master said": (MPI | MASTER, Place("mpirun", 3, 4, 1, 2, "gpu07", 29500)),
    "a batch script": (BATCH, Place("none")),
    "srun --pty bash": (SHELL, Place("none")),
    "srun": (STEP, Place("srun", 2, 3, 0, 1, "gpu07", 20000 + 7 * 16 + 1)),
    "srun, the master said": (STEP | MASTER, Place("srun", 2, 3, 0, 1, "gpu07", 29500)),
    "deepspeed in a step": (STEP | TORCH, Place("deepspeed", 3, 4, 1, 2)),
    "mpirun in a step": (STEP | MPI, Place("mpirun", 3, 4, 1, 2)),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_place_as_each_launcher_says_it(case: str) -> None:
    environment, expected = EXPECTED[case]
    assert place(environment) == expected


@pytest.mark.parametrize("case", [case for case in EXPECTED if case != "nothing"])
def test_place_in_torchs_variables_is_the_same_place(case: str) -> None:
    """The program says its place again, in torch's variables, before anything reads them."""
    environment, expected = EXPECTED[case]
    again = place(environment | expected.variables())
    assert again.variables() == expected.variables()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "0"}, "LOCAL_RANK is not set"),
        ({"RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is not set"),
        (TORCH | {"RANK": "first"}, "first"),
        (TORCH | {"MASTER_PORT": "http"}, "http"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "OMPI_COMM_WORLD_SIZE is not set"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "many"}, "'many'"),
        ({k: v for k, v in STEP.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
    ],
)
def test_half_a_place_is_an_error(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match="without its place among the ranks") as caught:
        place(environment)
    assert named in str(caught.value)


def test_steps_of_one_job_beside_each_other_have_ports_of_their_own() -> None:
    ports = {place(STEP | {"SLURM_STEP_ID": str(step)}).master_port for step in range(16)}
    assert len(ports) == 16


counts = st.lists(st.integers(1, 16), min_size=1, max_size=12)


@given(counts, st.booleans())
def test_tasks_per_node(tasks: list[int], repeats: bool) -> None:
    parts: list[tuple[int, int]] = []
    for count in tasks:
        if repeats and parts and parts[-1][0] == count:
            parts[-1] = (count, parts[-1][1] + 1)
        else:
            parts.append((count, 1))
    text = ",".join(f"{count}(x{times})" if times > 1 else f"{count}" for count, times in parts)
    assert tasks_per_node(text) == tasks


@pytest.mark.parametrize("text", ["", "2(x", "2,", "(x2)", "-1"])
def test_what_is_no_count_of_tasks(text: str) -> None:
    with pytest.raises(ValueError, match="SLURM_STEP_TASKS_PER_NODE"):
        tasks_per_node(text)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("host-a", "host-a"),
        ("host-a,host-b", "host-a"),
        ("n[1-2]", "n1"),
        ("gpu[03-05,9],b1", "gpu03"),
        ("gpu[9,11]", "gpu9"),
        ("a1,gpu[03-05]", "a1"),
        ("r[01-02]n[4-7]-ib,r3n1", "r01n4-ib"),
        ("10.0.0.[1-2]", "10.0.0.1"),
    ],
)
def test_first_node(text: str, first: str) -> None:
    assert first_node(text) == first


@pytest.mark.parametrize("text", ["", ",n1", "[", "n[1"])
def test_what_is_no_list_of_nodes(text: str) -> None:
    with pytest.raises(ValueError, match="SLURM_STEP_NODELIST"):
        first_node(text)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
def test_ranks_of_one_host_need_no_interface(address: str) -> None:
    assert interface_towards(address) is None


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
import sys; from cpo_ds.ranks.place import interface_towards
print(*map(interface_towards, sys.argv[1:]))
"""


@pytest.mark.multinode
def test_interface_towards_the_master(tmp_path: Path) -> None:
    """In a network of its own, with the interfaces that a host of a cluster may have."""
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


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
values = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=20)


@given(st.dictionaries(names, values, max_size=5))
def test_environment_file_is_taken_as_it_is(variables: dict[str, str]) -> None:
    text = "".join(f"{name}={value}\n" for name, value in variables.items())
    assert read_environment_file(text) == variables


@pytest.mark.parametrize("line", ["", "# comment", "# A=1", "export A=1", "A", "=1", "1A=2"])
def test_lines_that_the_launcher_fails_on_are_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 2 is .* instead of NAME=VALUE"):
        read_environment_file(f"A=1\n{line}\nB=2\n")


def test_what_the_environment_file_may_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set already stays; the launch folder's file wins over the home's."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    for path, text in ((home, "A=home\nB=home\nC=home\n"), (folder, "A=folder\nB=folder\n")):
        path.mkdir()
        (path / ".deepspeed_env").write_text(text)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "environ", os.environ | {"A": "set"})
    take_environment_file()
    assert [os.environ[name] for name in "ABC"] == ["set", "folder", "home"]

    (folder / ".deepspeed_env").write_text("# A=1\n")
    with pytest.raises(UserError, match=r"folder/\.deepspeed_env: line 1 is '# A=1'"):
        take_environment_file()


def test_first_node_is_slurms(tmp_path: Path) -> None:
    if shutil.which("scontrol") is None:
        pytest.skip("needs scontrol (Debian: slurm-client)")
    (tmp_path / "slurm.conf").write_text("ClusterName=c\nSlurmctldHost=localhost\nNodeName=n1\n")
    environment = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    for text in ("a1", "gpu[03-05,9],b1", "r[01-02]n[4-7],r3n1", "x9,a[1-2]"):
        command = ["scontrol", "show", "hostnames", text]
        said = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert said.stdout.split()[:1] == [first_node(text)], said.stderr
