"""`cpo-ds doctor`: what is wrong with hosts is named, with what to do; on simulated hosts too."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
import pytest
import simulated_hosts
from architecture import imported_names
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_hosts import SimulatedHosts

from cpo_ds import cli
from cpo_ds.doctor import command as doctor
from cpo_ds.doctor import links, remote, sessions
from cpo_ds.doctor.bandwidth import bus_bandwidth, groups_of
from cpo_ds.doctor.checks.findings import Finding, Row, by_value, together
from cpo_ds.doctor.hostfile import Host, fold, hostfile_text, parse_hostfile
from cpo_ds.doctor.reachable import those_left
from cpo_ds.doctor.survey import Facts, Folder, Gpu, Network, Survey, Trouble, Wanted
from cpo_ds.doctor.table import report

NAME = st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(\.x)?", fullmatch=True)
HOSTS = st.lists(st.builds(Host, NAME, st.integers(1, 16)), min_size=1, unique_by=lambda h: h.name)
SLOTS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@settings(deadline=None)  # the first import of DeepSpeed takes seconds
@given(HOSTS, st.lists(st.sampled_from(["# gpu7 slots=8", "", "   "]), max_size=3))
def test_a_hostfile_is_read_as_the_launcher_reads_it(hosts: list[Host], between: list[str]) -> None:
    from deepspeed.launcher.runner import _parse_hostfile

    lines = [*between, *hostfile_text(hosts).splitlines(), *between]
    read = parse_hostfile("\n".join(lines))
    assert [(host.name, host.slots) for host in read] == [(h.name, h.slots) for h in hosts]
    assert [lines[host.line - 1].split()[0] for host in read] == [host.name for host in hosts]
    assert dict(_parse_hostfile(lines)) == {host.name: host.slots for host in hosts}


@pytest.mark.parametrize(
    "text, said",
    [
        ("a slots=1\nb\n", r":2: 'b': no slots; write a line"),
        ("a slots = 2\n", ":1: .*: slots has to follow the name, not 'slots'"),
        ("a slots=x\n", ":1: .*not 'slots=x'"),
        ("\n\na slots=0\n", ":3: .*a host needs a slot"),
        ("slots=4\n", ":1: 'slots=4': no slots"),
        ("-oProxyCommand=x slots=1\n", ":1: .*a host needs a name"),
        ("a slots=1\n# b\na slots=2\n", ":3: a is on line 1 already"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_bad_hostfile_is_refused_by_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_hostfile(text)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--hostfile", "{tmp}/none"], "hostfile {tmp}/none cannot be read: No such file"),
        (["--hostfile", "{tmp}/binary"], "hostfile {tmp}/binary cannot be read: it is not text"),
        (["--hostfile", "{tmp}/bad"], "{tmp}/bad:1: 'a': no slots"),
        (["--hostfile", "{tmp}/good", "--write", "x"], "--write goes with --reachable-only"),
        (["--hostfile", "{tmp}/good", "--size", "0"], "--size has to be more than 0"),
        (["--hostfile", "{tmp}/good", "--ssh-port", "70000"], "--ssh-port has to be between"),
        (["--hostfile", "{tmp}/good", "--confg", "x"], "unknown argument --confg"),
        (["--hostfile", "{tmp}/good", "--config", "{tmp}/none"], "{tmp}/none"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad").write_text("a\n")
    (tmp_path / "good").write_text("a slots=1\n")
    assert cli.main(["doctor", *(o.replace("{tmp}", str(tmp_path)) for o in options)]) == 2
    assert said.replace("{tmp}", str(tmp_path)) in capsys.readouterr().err


@given(st.lists(NAME, unique=True))
def test_folded_names_unfold(names: list[str]) -> None:
    unfolded = []
    for part in filter(None, fold(names).split(", ")):
        found = re.fullmatch(r"(.*)\[(\d+)-(\d+)\](.*)", part)
        if found is None:
            unfolded.append(part)
            continue
        stem, first, last, rest = found.groups()
        numbers = range(int(first), int(last) + 1)
        unfolded += [f"{stem}{n:0{len(first)}}{rest}" for n in numbers]
    assert unfolded == names


def test_names_in_a_row_are_folded() -> None:
    assert fold(["gpu08", "gpu09", "gpu10", "x", "gpu12"]) == "gpu[08-10], x, gpu12"


@given(st.dictionaries(NAME, st.sampled_from("abc"), min_size=1))
def test_hosts_are_grouped_by_value(values: dict[str, str]) -> None:
    groups = by_value(values)
    assert {host: value for value, hosts in groups.items() for host in hosts} == values
    sizes = [len(hosts) for hosts in groups.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert together(values).count(" on ") == (len(groups) if len(groups) > 1 else 0)


@given(SLOTS)
def test_all_links_of_the_ring_are_measured(slots: list[int]) -> None:
    first = [sum(slots[:host]) for host in range(len(slots))]
    groups = groups_of(slots)
    within = {hosts[0]: ranks for kind, hosts, ranks in groups if kind == "within"}
    assert within == {h: tuple(range(first[h], first[h] + n)) for h, n in enumerate(slots) if n > 1}
    ring = {frozenset({h, (h + 1) % len(slots)}) for h in range(len(slots))} if slots[1:] else set()
    measured = [frozenset(hosts) for kind, hosts, _ in groups if kind == "link"]
    assert set(measured) == ring and len(measured) == len(ring)
    assert all(ranks == tuple(first[h] for h in hosts) for k, hosts, ranks in groups if k == "link")
    whole = [ranks for kind, _, ranks in groups if kind == "all"]
    assert whole == ([tuple(range(sum(slots)))] if slots[1:] else [])


@given(st.floats(1, 1e12), st.floats(1e-6, 1e3), st.integers(2, 512))
def test_bus_bandwidth_is_what_a_ring_sends(size: float, seconds: float, ranks: int) -> None:
    # Reduce-scatter and all-gather: ranks - 1 steps each, a rank sending 1/ranks of it in each.
    sent = 2 * (ranks - 1) * size / ranks
    assert bus_bandwidth(size, seconds, ranks) == pytest.approx(sent / seconds)


def test_the_slowest_link_is_named() -> None:
    results = [
        links.Result("link", ("a", "b"), 10.0),
        links.Result("link", ("b", "c"), 0.01),
        links.Result("link", ("c", "a"), 9.0),
        links.Result("all", ("a", "b", "c"), 0.01),
    ]
    row = links.row(results, [], {}, 60)
    assert "10.2 MiB/s (b to c, the slowest) to 10 GiB/s" in row.seen and row.state == "warn"
    assert row.findings[0].hosts == ("b", "c") and "1e+03 times less" in row.findings[0].what
    assert links.row(results[::2], [], {}, 60).state == "ok"
    failed = links.row(results[:1], ["b to c"], {"b": "reset by peer"}, 60)
    assert failed.state == "fix" and "(b: reset by peer): b to c" in failed.findings[0].what
    assert "within 60 s: b to c" in links.row([], ["b to c"], {}, 60).findings[0].what


GPU = Gpu("A100", 81920, 0, "550.54")
WANTED = Wanted(
    Path("hosts"), "/v/python", Path("/c/cpo_ds"), Path("/c"), Path("/runs/x"),
    files=(Path("/c/r.yaml"),), models=(Path("/m"),), data=(Path("/d.jsonl"),),
)  # fmt: skip


def healthy(count: int) -> Survey:
    """Hosts with nothing wrong, gpu1, gpu2, ..."""
    names = [f"gpu{i + 1}" for i in range(count)]
    addresses = {name: (f"10.0.0.{i + 1}",) for i, name in enumerate(names)}

    def facts(name: str) -> Facts:
        return Facts(
            hostname=name, boot=name, python="/v/python", python_version="3.11.7", cores=64,
            gpus=(GPU, GPU), versions={"torch": "2.13.0", "mpi4py": "4.1"}, programs=("orted",),
            sources={"train.py": "1", "losses.py": "2"}, commit="c0ffee", there=("/c", "/d.jsonl"),
            files={"/c/r.yaml": "3"}, trees={"/m": {"a.safetensors": 2**30, "config.json": 5}},
            memory=100, shm=50, interfaces=("lo", "eth0"), addresses=addresses[name],
            resolved=addresses | {name: ("127.0.1.1",)},
        )  # fmt: skip

    everyone = frozenset(names)
    return Survey(
        WANTED,
        tuple(Host(name, 2, line) for line, name in enumerate(names, start=1)),
        facts={name: facts(name) for name in names},
        folders={name: Folder("", 500, everyone) for name in names},
        clocks=dict.fromkeys(names, (0.001, 0.01)),
        network=Network(
            "10.0.0.1",
            to_master=dict.fromkeys(names[1:], ""),
            pairs={(a, b): "" for a in names for b in names if a != b},
            addresses={name: some[0] for name, some in addresses.items()},
        ),
    )


@pytest.mark.parametrize("count", [1, 2, 32])
def test_nothing_is_said_of_healthy_hosts(count: int) -> None:
    rows = doctor.judge(healthy(count))
    assert [row for row in rows if row.state != "ok"] == [] and len(rows) >= 15
    assert len(report(rows).splitlines()) < len(rows) + 5  # however many hosts there are


def of_gpu2(**changed: Any) -> Any:
    """The same hosts with other facts on the second."""

    def change(survey: Survey) -> Survey:
        facts = dict(survey.facts)
        facts["gpu2"] = replace(facts["gpu2"], **changed)
        return replace(survey, facts=facts)

    return change


def network(**changed: Any) -> Any:
    return lambda survey: replace(survey, network=replace(survey.network, **changed))


def wanted(**changed: Any) -> Any:
    return lambda survey: replace(survey, wanted=replace(survey.wanted, **changed))


def slots_of_gpu2(slots: int) -> Any:
    def change(survey: Survey) -> Survey:
        first, second, *others = survey.hosts
        return replace(survey, hosts=(first, replace(second, slots=slots), *others))

    return change


def folder_of_gpu2(folder: Folder) -> Any:
    return lambda survey: replace(survey, folders=dict(survey.folders) | {"gpu2": folder})


def lose_gpu2(survey: Survey) -> Survey:
    rest = {name: some for name, some in survey.facts.items() if name != "gpu2"}
    return replace(survey, lost={"gpu2": Trouble("it is off", "turn it on")}, facts=rest)


ALONE = Folder("", 500, frozenset({"gpu2"}))
FAULTS = [
    (lose_gpu2, "login", "fix", "gpu2: it is off"),
    (of_gpu2(boot="gpu1", hostname="gpu1"), "host names", "fix", "they are one host (gpu1)"),
    (of_gpu2(hostname="gpu3"), "host names", "fix", "gpu[2-3]: all call themselves gpu3"),
    (of_gpu2(python="/usr/bin/python3"), "Python", "fix", "gpu2: there is no working /v/python"),
    (of_gpu2(python_version="3.10.1"), "Python", "fix", "gpu2: Python 3.10.1 instead of 3.11.7"),
    (of_gpu2(versions={"torch": "2.12", "mpi4py": "4.1"}), "packages", "fix", "torch==2.13.0"),
    (of_gpu2(versions={"torch": "2.13.0"}), "packages", "fix", "gpu2: mpi4py none instead of 4.1"),
    (of_gpu2(sources={"train.py": "1", "losses.py": "9"}, commit="bad"), "checkout", "fix",
     "gpu2: other code than on gpu1, gpu3: losses.py -> bring it to the same state (git checkout"),
    (of_gpu2(sources={}), "checkout", "fix", "gpu2: there is no /c/cpo_ds"),
    (of_gpu2(there=("/d.jsonl",)), "checkout", "fix", "gpu2: there is no folder /c"),
    (of_gpu2(files={"/c/r.yaml": None}), "recipe", "fix", "gpu2: there is no /c/r.yaml"),
    (of_gpu2(files={"/c/r.yaml": "4"}), "recipe", "fix", "gpu2: /c/r.yaml is another than on gpu1"),
    (of_gpu2(trees={"/m": None}), "model", "fix", "gpu2: there is no /m"),
    (of_gpu2(trees={"/m": {"config.json": 5}}), "model", "fix", "gpu2: /m is not as on gpu1, gpu3: "
     "a.safetensors"),
    (slots_of_gpu2(3), "slots", "fix", "gpu2: 3 slots for 2 GPUs -> write slots=2 in hosts:2"),
    (slots_of_gpu2(1), "slots", "warn", "gpu2: 1 of 2 GPUs are not used"),
    (of_gpu2(gpus=()), "slots", "fix", "gpu2: it shows no GPU"),
    (of_gpu2(gpus=(GPU, replace(GPU, used=40960))), "slots", "warn", "memory of GPU 1 (40 GiB)"),
    (of_gpu2(gpus=(replace(GPU, driver="1"),) * 2), "slots", "warn", "gpu2: NVIDIA driver 1"),
    (of_gpu2(gpus=(replace(GPU, name="V100"),) * 2), "slots", "warn", "V100 on gpu2"),
    (folder_of_gpu2(Folder("Permission denied")), "folder", "fix", "gpu2: /runs/x cannot be written"
     ": Permission denied"),
    (folder_of_gpu2(ALONE), "folder", "fix", "gpu2 sees the files of gpu2"),
    (wanted(has_launcher=False), "launcher", "fix", "apt-get install pdsh"),
    (wanted(environment={"GLOO_SOCKET_IFNAME": "ib0"}), ".deepspeed_env", "fix", "gpu[1-3]: "),
    (network(master=""), "ports", "fix", "`hostname -I` names no address"),
    (network(master="127.0.0.1"), "ports", "fix", "gpu1: 127.0.0.1 is to be rank 0's address"),
    (network(port_problem="Address already in use", port_owner="python, process 7"), "ports", "fix",
     "gpu1: port 29500 cannot be taken: address already in use (python, process 7)"),
    (network(to_master={"gpu2": "timed out"}), "ports", "fix", "gpu2: no connection to port 29500"),
    (network(pairs={("gpu2", "gpu3"): "timed out", ("gpu1", "gpu3"): "timed out"}), "ports", "fix",
     "no connection to gpu3 at 10.0.0.3, a free port: timed out"),
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
    spoiled = {name for name, some in states.items() if some == "fix"} - {check}
    assert not spoiled, f"{check} also spoils {spoiled}"
    text = " ".join(report(rows, width=10_000).split())
    assert said in text


def test_a_folder_of_each_host_is_enough_for_local_checkpoints() -> None:
    survey = wanted(local_checkpoints=True)(folder_of_gpu2(ALONE)(healthy(3)))
    assert {row.state for row in doctor.judge(survey)} == {"ok"}


def test_mpirun_needs_more_than_pdsh() -> None:
    by_mpi = wanted(launcher="openmpi")
    assert {row.state for row in doctor.judge(by_mpi(healthy(3)))} == {"ok"}
    for change, check in (
        (of_gpu2(programs=()), "launcher"),
        (of_gpu2(resolved={}), "resolution"),
    ):
        rows = {row.check: row for row in doctor.judge(by_mpi(change(healthy(3))))}
        assert rows[check].state == "fix", check
    told = wanted(launcher="openmpi", environment={"MASTER_ADDR": "x", "MASTER_PORT": "1"})
    assert all(row.state != "fix" for row in doctor.judge(told(of_gpu2(resolved={})(healthy(3)))))


def test_without_gpus_ranks_share_cores() -> None:
    def rows_with(slots: int) -> list[Row]:
        survey = healthy(2)
        facts = {name: replace(f, gpus=(), cores=4) for name, f in survey.facts.items()}
        return doctor.judge(slots_of_gpu2(slots)(replace(survey, facts=facts)))

    states = [{r.check: r.state for r in rows_with(n)}["slots"] for n in (4, 5, 8, 9)]
    assert states == ["ok", "warn", "warn", "fix"]


@given(st.lists(st.tuples(st.text("ab -/", min_size=1), st.booleans())), st.integers(60, 120))
def test_findings_are_numbered_errors_first(some: list[tuple[str, bool]], width: int) -> None:
    findings = tuple(Finding(("h",), f"x{what}x", "do it", error) for what, error in some)
    lines = report([Row("check", "seen", findings)], width).splitlines()
    numbers = [int(n[1]) for line in lines if (n := re.match(r"\s*(\d+)\. ", line))]
    assert numbers == list(range(1, len(some) + 1))
    errors = sum(error for _, error in some)
    assert ("To put right:" in lines) == (errors > 0)
    assert ("Worth a look:" in lines) == (errors < len(some))
    assert lines[0].split()[0] == ("fix" if errors else "warn" if some else "ok")


@pytest.mark.parametrize(
    "errors, what, fix",
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
        ("a motd\nsomething new", "it said: something new", "ssh h true"),
    ],
)  # fmt: skip
def test_what_ssh_says_is_explained(errors: str, what: str, fix: str) -> None:
    said = sessions.explain(Host("h", 1, 3), errors, Path("hosts"))
    assert what in said[0] and fix in said[1]


@given(st.lists(st.tuples(st.integers(1, 8), st.one_of(st.integers(0, 8), st.just("it is off")))))
def test_hosts_that_are_left_keep_their_order(some: list[tuple[int, int | str]]) -> None:
    counts = {Host(f"h{i}", slots): count for i, (slots, count) in enumerate(some)}
    left, reasons = those_left(counts)
    any_gpu = any(isinstance(count, int) and count for count in counts.values())
    expected = {
        host.name: min(host.slots, count) if any_gpu else host.slots
        for host, count in counts.items()
        if isinstance(count, int) and (count or not any_gpu)
    }
    assert [(host.name, host.slots) for host in left] == list(expected.items())
    changed = [host for host in counts if expected.get(host.name) != host.slots]
    assert len(reasons) == len(changed)


@pytest.fixture
def no_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh that runs the command on this host, after what a shell's start-up file prints."""
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\necho "welcome to $1"\nexec sh -c "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_a_silent_host_is_given_up(no_ssh: Path) -> None:
    def look(session: sessions.Session) -> Any:
        is_slow = session.host.name == "slow"
        wait, limit = (60, 0.5) if is_slow else (0, 60)
        return session.ask("seen_tokens", limit, folder="/", tokens=["none"], wait=wait)

    with sessions.sessions(sessions.Ssh(Path("hosts")), [Host("h", 1), Host("slow", 1)]) as party:
        assert list(party.ask("clock")) == ["h", "slow"]
        assert party.each(look) == {"h": {"seen": []}} and party.names == ["h"]
        assert "nothing came back" in party.lost["slow"].what
        assert party.ask("connect", targets=None, timeout=1) == {}
        assert "TypeError" in party.lost["h"].what


def test_what_runs_on_a_host_ends_in_time(no_ssh: Path) -> None:
    wait = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
    fail = [sys.executable, "-c", "raise SystemExit(3)"]
    with sessions.sessions(sessions.Ssh(Path("hosts")), [Host("here", 1)]) as party:
        timed = party.ask("run", commands=[wait], environments=[{}], limit=1)["here"]
        assert timed == {"codes": [None], "outputs": ["on\n"]}
        failed = party.ask("run", commands=[wait, fail], environments=[{}, {}], limit=30)["here"]
        assert failed["codes"] == [None, 3]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedHosts]:
    if (reason := simulated_hosts.reason_against()) is not None:
        pytest.skip(reason)
    with simulated_hosts.simulated_hosts(tmp_path_factory.mktemp("hosts")) as some:
        yield some


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
    measured = {(some["kind"], *some["hosts"]) for some in said["bandwidth"]}
    assert measured == {("within", "host-a"), ("link", *hosts.names), ("all", *hosts.names)}
    assert all(some["gib_per_second"] > 0 for some in said["bandwidth"])
    assert not (tmp_path / "runs").exists(), "what was made to try the folder has to go"


@pytest.mark.multinode
def test_faults_of_a_host_are_named(hosts: SimulatedHosts, tmp_path: Path) -> None:
    """On host-b: another torch, other code, no model, a folder of its own, too many slots."""
    mounted = {
        "cpo_ds/losses.py": (launch.ROOT / "cpo_ds" / "losses.py", "# changed\n"),
        "METADATA": (torch_metadata(), "Metadata-Version: 2.1\nName: torch\nVersion: 2.0.1\n"),
    }
    for name, (place, text) in mounted.items():
        (tmp_path / Path(name).name).write_text(text)
        on_second(hosts, f"mount --bind '{tmp_path / Path(name).name}' '{place}'")
    (tmp_path / "model").mkdir()
    (tmp_path / "empty").mkdir()
    on_second(hosts, f"mount --bind '{tmp_path / 'empty'}' '{tmp_path / 'model'}'")
    (tmp_path / "model" / "config.json").write_text("{}")
    recipe = ["--config", "recipes/demo.yaml", "--model.name_or_path", tmp_path / "model"]
    options = ["--output-dir", simulated_hosts.NODE_LOCAL / "runs"]
    busy = hosts.start(0, [sys.executable, "-c", HOLD_A_PORT])
    assert busy.stdout is not None
    port = busy.stdout.readline().strip()
    try:
        hostfile = hosts.write_hostfile([1, 90])
        options += ["--master-port", port, "--need-disk", 0]
        done = check_hosts(hosts, hostfile, *recipe, *options)
    finally:
        os.killpg(busy.pid, signal.SIGKILL)
        for place in (*(place for place, _ in mounted.values()), tmp_path / "model"):
            on_second(hosts, f"umount '{place}'")
    assert done.code == 2
    text = " ".join(done.output.split())
    for said in (
        "host-b: torch 2.0.1 instead of",
        "host-b: other code than on host-a: losses.py",
        f"host-b: there is no {tmp_path / 'model'}",
        f"host-b: 90 slots for {os.cpu_count()} CPU cores",
        f"in {hostfile}:2",
        "/node-local/runs is not one folder for all hosts: host-a sees the files of host-a",
        f"host-a: port {port} cannot be taken: address already in use",
        "not measured before what is below is put right",
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


def test_any_python_of_the_last_years_can_be_asked() -> None:
    text = Path(remote.__file__).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 8))
    imported = {n for n in imported_names(text) if n.split(".")[0] not in sys.stdlib_module_names}
    assert imported == set()


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
