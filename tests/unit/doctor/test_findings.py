"""Each fault of a host is named together with its remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from healthy_hosts import (
    GPU,
    folder_of_gpu2,
    healthy,
    lose_gpu2,
    network,
    of_gpu2,
    planned,
    slots_of_gpu2,
)
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.doctor import command as doctor
from cpo_ds.doctor.checks.findings import Finding, Row, by_value, describe
from cpo_ds.doctor.survey import Folder
from cpo_ds.doctor.table import report

NAME = st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(\.x)?", fullmatch=True)


@given(st.dictionaries(NAME, st.sampled_from("abc"), min_size=1))
def test_hosts_are_grouped_by_value(values: dict[str, str]) -> None:
    groups = by_value(values)
    assert {host: value for value, hosts in groups.items() for host in hosts} == values
    sizes = [len(hosts) for hosts in groups.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert describe(values).count(" on ") == (len(groups) if len(groups) > 1 else 0)


@pytest.mark.parametrize("count", [1, 2, 32])
def test_nothing_is_said_of_healthy_hosts(count: int) -> None:
    rows = doctor.judge(healthy(count))
    assert [row for row in rows if row.state != "ok"] == [] and len(rows) >= 15
    assert len(report(rows).splitlines()) < len(rows) + 5  # however many hosts there are


ALONE = Folder("", 500, frozenset({"gpu2"}))
FAULTS = [
    (lose_gpu2, "login", "fix", "gpu2: it is off"),
    (of_gpu2(boot="gpu1", hostname="gpu1"), "host names", "fix", "these are one host (gpu1)"),
    (of_gpu2(hostname="gpu3"), "host names", "fix", "gpu[2-3]: all have the name gpu3"),
    (planned(has_marked_hostfile=True), "host names", "fix", "gpu1: hosts begins with a byte order "
     "mark, which DeepSpeed's launcher takes for a part of the first name -> remove it: sed -i"),
    (of_gpu2(python="/usr/bin/python3"), "Python", "fix", "gpu2: there is no working /v/python"),
    (of_gpu2(python_version="3.10.1"), "Python", "fix", "gpu2: Python 3.10.1 instead of 3.11.7"),
    (of_gpu2(versions={"torch": "2.12", "mpi4py": "4.1"}), "packages", "fix", "torch==2.13.0"),
    (of_gpu2(versions={"torch": "2.13.0"}), "packages", "fix", "gpu2: mpi4py none instead of 4.1"),
    (of_gpu2(sources={"train.py": "1", "losses.py": "9"}, commit="bad"), "checkout", "fix",
     "gpu2: the code differs from that on gpu1, gpu3: losses.py -> bring it to the same state (git "
     "checkout"),
    (of_gpu2(sources={}), "checkout", "fix", "gpu2: there is no /c/cpo_ds"),
    (of_gpu2(existing_paths=("/d.jsonl",)), "checkout", "fix", "gpu2: there is no folder /c"),
    (of_gpu2(files={"/c/r.yaml": None}), "recipe", "fix", "gpu2: there is no /c/r.yaml"),
    (of_gpu2(files={"/c/r.yaml": "4"}), "recipe", "fix",
     "gpu2: /c/r.yaml differs from the one on gpu1"),
    (of_gpu2(trees={"/m": None}), "model", "fix", "gpu2: there is no /m"),
    (of_gpu2(trees={"/m": {"config.json": 5}}), "model", "fix", "gpu2: /m differs from the one on "
     "gpu1, gpu3: a.safetensors"),
    (slots_of_gpu2(3), "slots", "fix", "gpu2: 3 slots for 2 GPUs -> write slots=2 in hosts:2"),
    (slots_of_gpu2(1), "slots", "warn", "gpu2: 1 of 2 GPUs are not used"),
    (of_gpu2(gpus=()), "slots", "fix", "gpu2: it has no GPU"),
    (of_gpu2(gpus=(GPU, replace(GPU, used=40960))), "slots", "warn", "memory of GPU 1 (40 GiB)"),
    (of_gpu2(gpus=(replace(GPU, driver="1"),) * 2), "slots", "warn", "gpu2: NVIDIA driver 1"),
    (of_gpu2(gpus=(replace(GPU, name="V100"),) * 2), "slots", "warn", "V100 on gpu2"),
    (folder_of_gpu2(Folder("Permission denied")), "folder", "fix", "gpu2: /runs/x cannot be written"
     ": Permission denied"),
    (folder_of_gpu2(ALONE), "folder", "fix", "gpu2 sees the files of gpu2"),
    (planned(has_launcher=False), "launcher", "fix", "apt-get install pdsh"),
    (planned(environment={"GLOO_SOCKET_IFNAME": "ib0"}), ".deepspeed_env", "fix", "gpu[1-3]: "),
    (network(master=""), "ports", "fix", "`hostname -I` gives no address"),
    (network(master="127.0.0.1"), "ports", "fix", "gpu1: rank 0's address would be 127.0.0.1"),
    (network(port_problem="Address already in use", port_owner="python, process 7"), "ports", "fix",
     "gpu1: port 29500 cannot be opened: address already in use (python, process 7)"),
    (network(to_master={"gpu2": "timed out"}), "ports", "fix", "gpu2: no connection to port 29500"),
    (network(pairs={("gpu2", "gpu3"): "timed out", ("gpu1", "gpu3"): "timed out"}), "ports", "fix",
     "no connection to gpu3 at 10.0.0.3 on a free port: timed out"),
    (of_gpu2(resolved={}), "resolution", "warn", "gpu2: the name gpu1 is unknown"),
    (of_gpu2(resolved={"gpu1": ("127.0.0.1",), "gpu3": ("10.9.9.9",)}), "resolution", "warn",
     "the name gpu3 means 10.0.0.3 on gpu1; 10.9.9.9 on gpu2"),
    (folder_of_gpu2(Folder("", 3, frozenset({"gpu1", "gpu2", "gpu3"}))), "disk", "warn",
     "gpu2: 3 GiB are free in /runs/x, less than 20"),
    (of_gpu2(memory=2.0), "memory", "warn", "gpu2: 2 GiB of memory are free"),
    (of_gpu2(shm=0.06), "memory", "warn", "gpu2: 0 GiB in /dev/shm"),
    (lambda s: replace(s, clocks=dict(s.clocks) | {"gpu2": (-3.5, 0.01)}), "clocks", "warn",
     "gpu2: its clock is 3.5 s behind"),
]  # fmt: skip


@pytest.mark.parametrize("change, check, state, said", FAULTS, ids=[f[3][:40] for f in FAULTS])
def test_a_fault_is_named_with_what_to_do(change: Any, check: str, state: str, said: str) -> None:
    rows = doctor.judge(change(healthy(3)))
    states = {row.check: row.state for row in rows}
    assert states[check] == state
    spoiled = {name for name, own_state in states.items() if own_state == "fix"} - {check}
    assert not spoiled, f"{check} also spoils {spoiled}"
    text = " ".join(report(rows, width=10_000).split())
    assert said in text


def test_a_folder_of_each_host_is_enough_for_local_checkpoints() -> None:
    survey = planned(local_checkpoints=True)(folder_of_gpu2(ALONE)(healthy(3)))
    assert {row.state for row in doctor.judge(survey)} == {"ok"}


def test_mpirun_needs_more_than_pdsh() -> None:
    by_mpi = planned(launcher="openmpi")
    assert {row.state for row in doctor.judge(by_mpi(healthy(3)))} == {"ok"}
    for change, check in (
        (of_gpu2(programs=()), "launcher"),
        (of_gpu2(resolved={}), "resolution"),
    ):
        rows = {row.check: row for row in doctor.judge(by_mpi(change(healthy(3))))}
        assert rows[check].state == "fix", check
    told = planned(launcher="openmpi", environment={"MASTER_ADDR": "x", "MASTER_PORT": "1"})
    assert all(row.state != "fix" for row in doctor.judge(told(of_gpu2(resolved={})(healthy(3)))))


def test_without_gpus_ranks_share_cores() -> None:
    def rows_with(slots: int) -> list[Row]:
        survey = healthy(2)
        facts = {name: replace(f, gpus=(), cores=4) for name, f in survey.facts.items()}
        return doctor.judge(slots_of_gpu2(slots)(replace(survey, facts=facts)))

    states = [{r.check: r.state for r in rows_with(n)}["slots"] for n in (4, 5, 8, 9)]
    assert states == ["ok", "warn", "warn", "fix"]


@given(st.lists(st.tuples(st.text("ab -/", min_size=1), st.booleans())), st.integers(60, 120))
def test_findings_are_numbered_errors_first(drawn: list[tuple[str, bool]], width: int) -> None:
    findings = tuple(Finding(("h",), f"x{text}x", "do it", error) for text, error in drawn)
    lines = report([Row("check", "seen", findings)], width).splitlines()
    numbers = [int(n[1]) for line in lines if (n := re.match(r"\s*(\d+)\. ", line))]
    assert numbers == list(range(1, len(drawn) + 1))
    errors = sum(error for _, error in drawn)
    assert ("To fix:" in lines) == (errors > 0)
    assert ("Warnings:" in lines) == (errors < len(drawn))
    assert lines[0].split()[0] == ("fix" if errors else "warn" if drawn else "ok")
