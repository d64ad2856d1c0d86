"""Asks all hosts at once and collects their answers in a `Survey`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from cpo_ds.doctor.hostfile import Host
from cpo_ds.doctor.sessions import HostGroup, PerHost, Session
from cpo_ds.doctor.survey import (
    PACKAGES,
    PROGRAMS,
    Facts,
    Folder,
    Gpu,
    Network,
    PlannedRun,
    Survey,
    Trouble,
)

_FACTS_SECONDS = 60.0  # checksums of the code, listings of models on slow disks, slow name servers
_SHARING_SECONDS = 3.0  # a shared folder shows another host's new file within this time
_CONNECT_SECONDS = 4.0


def gather(group: HostGroup, hosts: tuple[Host, ...], run: PlannedRun) -> Survey:
    """Asks every host all questions. A host that stops answering is asked nothing more."""
    # The Python that answers has to be the run's; other hosts are asked nothing more.
    devices = group.ask("devices")
    for name, answer in devices.items():
        if answer["python"] != run.python:
            group.leave_out(name)

    # Software, files, memory and names of hosts.
    own_names = {answer["hostname"] for answer in devices.values()}
    others = group.ask(
        "facts",
        _FACTS_SECONDS,
        packages=PACKAGES,
        programs=PROGRAMS,
        package=str(run.package),
        paths=[str(path) for path in (run.folder, *run.data)],
        files=[str(path) for path in run.files],
        trees=[str(path) for path in run.models],
        hosts=sorted({address_of(host.name) for host in hosts} | own_names),
    )

    # Questions that take several steps, or all hosts together.
    clocks = group.each(_clock)
    folders = _folders(group, run)
    facts = {name: _facts(answer | others.get(name, {})) for name, answer in devices.items()}
    network = _network(group, hosts, run, facts)

    # A host may have been lost at any of these questions; drop its earlier answers.
    lost = {name: Trouble(error.problem, error.fix) for name, error in group.lost.items()}
    return Survey(
        run,
        hosts,
        lost,
        {name: host_facts for name, host_facts in facts.items() if name not in lost},
        {name: folder for name, folder in folders.items() if name not in lost},
        {name: offset for name, offset in clocks.items() if name not in lost},
        network,
    )


def address_of(name: str) -> str:
    """Returns the host in a name that ssh takes: `me@gpu1` -> gpu1."""
    return name.rpartition("@")[2]


def _facts(answer: dict[str, Any]) -> Facts:
    """Turns the JSON of a host's answers into `Facts`: lists into tuples, GPUs into `Gpu`."""
    gpus = tuple(Gpu(g[0], _int(g[1]), _int(g[2]), g[3]) for g in answer.pop("gpus"))
    resolved = {name: tuple(own) for name, own in answer.pop("resolved", {}).items()}
    for name in ("programs", "existing_paths", "interfaces", "addresses"):
        answer[name] = tuple(answer.get(name, ()))
    return Facts(gpus=gpus, resolved=resolved, **answer)


def _int(text: str) -> int:
    return int(text) if text.isdigit() else 0  # nvidia-smi prints [N/A] for values it cannot read


def _clock(session: Session, samples: int = 5) -> tuple[float, float]:
    """Returns how many seconds the host's clock is ahead of this one, and the uncertainty.

    As in NTP (RFC 5905): the host's time minus the middle of question and answer, of the quickest
    of several answers. Half the time of that answer is the uncertainty.
    """
    best = (0.0, float("inf"))
    for _ in range(samples):
        asked, began = time.time(), time.monotonic()
        host_time = session.ask("clock")["time"]
        half = (time.monotonic() - began) / 2
        if half < best[1]:
            best = (host_time - asked - half, half)
    return best


def _folders(group: HostGroup, run: PlannedRun) -> dict[str, Folder]:
    """Has each host leave a file in the run's folder, and asks each whose files it sees."""
    # The files' names are new, so no network file system has remembered that they do not exist.
    folder = str(run.output)
    key = uuid.uuid4().hex[:12]
    tokens = PerHost({n: f".doctor-{key}-{i}" for i, n in enumerate(group.names)})
    written = group.ask("write_token", folder=folder, token=tokens)
    names = {tokens[name]: name for name, answer in written.items() if not answer["problem"]}

    # Hosts with a folder of their own each would wait in vain for the files of others.
    wait = 0.0 if run.local_checkpoints else _SHARING_SECONDS
    seen = group.ask("seen_tokens", folder=folder, tokens=list(names), wait=wait)

    # A host cannot remove a folder in which another host's file still lies: repeat while it helps.
    left, before = 1, 0
    while left and left != before:
        before, left = left, sum(answer["left"] for answer in group.ask("tidy").values())
    return {
        name: Folder(
            answer["problem"],
            answer["disk"],
            frozenset(names[token] for token in seen.get(name, {}).get("seen", ())),
        )
        for name, answer in written.items()
    }


def _network(
    group: HostGroup, hosts: tuple[Host, ...], run: PlannedRun, facts: Mapping[str, Facts]
) -> Network:
    """Opens ports on all hosts and has every host connect to all of them."""
    first = hosts[0].name
    if first not in group.names:
        return Network()

    # Rank 0's address: set by an option or variable, else the first host's own, as the launcher
    # finds it.
    set_address = run.master_address or run.environment.get("MASTER_ADDR")
    master = set_address or next(iter(facts[first].addresses), "")
    towards = master or "127.0.0.1"

    # The first host opens the master port; then each host opens a free one.
    opened = group.ask(
        "listen",
        port=PerHost({name: run.master_port if name == first else 0 for name in group.names}),
        towards=towards,
    )
    free = group.ask("listen", port=0, towards=towards)
    own = opened.get(first, {"problem": "", "address": ""})
    addresses = {name: answer["address"] for name, answer in free.items()}
    addresses[first] = towards

    # Every host connects to the master port and to the free port of each host.
    targets = [(name, addresses[name], answer["port"]) for name, answer in free.items()]
    connected = group.ask(
        "connect",
        targets=[[towards, run.master_port], *([a, port] for _, a, port in targets)],
        timeout=_CONNECT_SECONDS,
    )
    group.ask("close_ports")
    return Network(
        master,
        own["problem"],
        own.get("by", ""),
        {n: a["problems"][0] for n, a in connected.items() if n != first and not own["problem"]},
        {
            (name, to): problem
            for name, answer in connected.items()
            for (to, _, _), problem in zip(targets, answer["problems"][1:], strict=True)
            if name != to
        },
        addresses,
    )
