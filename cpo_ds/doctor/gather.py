"""Asks all hosts and puts their answers into a `Survey`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from cpo_ds.doctor.hostfile import Host
from cpo_ds.doctor.sessions import Party, PerHost, Session
from cpo_ds.doctor.survey import (
    PACKAGES,
    PROGRAMS,
    Facts,
    Folder,
    Gpu,
    Network,
    Survey,
    Trouble,
    Wanted,
)

_FACTS_SECONDS = 60.0  # checksums of the code, listings of models on slow disks, slow name servers
_SHARING_SECONDS = 3.0  # until a file of another host has to show
_CONNECT_SECONDS = 4.0


def gather(party: Party, hosts: tuple[Host, ...], wanted: Wanted) -> Survey:
    """Every host's answers. A host that stops answering is lost from then on."""
    devices = party.ask("devices")
    for name, answer in devices.items():
        if answer["python"] != wanted.python:
            party.leave_out(name)
    own_names = {answer["hostname"] for answer in devices.values()}
    others = party.ask(
        "facts",
        _FACTS_SECONDS,
        packages=PACKAGES,
        programs=PROGRAMS,
        package=str(wanted.package),
        paths=[str(path) for path in (wanted.folder, *wanted.data)],
        files=[str(path) for path in wanted.files],
        trees=[str(path) for path in wanted.models],
        hosts=sorted({address_of(host.name) for host in hosts} | own_names),
    )
    clocks = party.each(_clock)
    folders = _folders(party, wanted)
    facts = {name: _facts(answer | others.get(name, {})) for name, answer in devices.items()}
    network = _network(party, hosts, wanted, facts)
    lost = {name: Trouble(error.what, error.fix) for name, error in party.lost.items()}
    return Survey(
        wanted,
        hosts,
        lost,
        {name: some for name, some in facts.items() if name not in lost},
        {name: folder for name, folder in folders.items() if name not in lost},
        {name: offset for name, offset in clocks.items() if name not in lost},
        network,
    )


def address_of(name: str) -> str:
    """The host in what ssh takes: `me@gpu1` -> gpu1."""
    return name.rpartition("@")[2]


def _facts(answer: dict[str, Any]) -> Facts:
    gpus = tuple(Gpu(g[0], _int(g[1]), _int(g[2]), g[3]) for g in answer.pop("gpus"))
    resolved = {name: tuple(found) for name, found in answer.pop("resolved", {}).items()}
    for name in ("programs", "there", "interfaces", "addresses"):
        answer[name] = tuple(answer.get(name, ()))
    return Facts(gpus=gpus, resolved=resolved, **answer)


def _int(text: str) -> int:
    return int(text) if text.isdigit() else 0  # nvidia-smi may say [N/A]


def _clock(session: Session, samples: int = 5) -> tuple[float, float]:
    """Seconds that the host's clock is ahead of this one's, and how far off that may be.

    As NTP has it (RFC 5905): its time against the middle of the question, by the quickest answer.
    """
    best = (0.0, float("inf"))
    for _ in range(samples):
        asked = time.time()
        there = session.ask("clock")["time"]
        half = (time.time() - asked) / 2
        if half < best[1]:
            best = (there - asked - half, half)
    return best


def _folders(party: Party, wanted: Wanted) -> dict[str, Folder]:
    """Each host leaves a file in the run's folder; all look whose files they see."""
    folder = str(wanted.output)
    here = uuid.uuid4().hex[:12]  # a name that no host has looked up, and so has not cached
    tokens = PerHost({n: f".doctor-{here}-{i}" for i, n in enumerate(party.names)})
    written = party.ask("write_token", folder=folder, token=tokens)
    names = {tokens[name]: name for name, answer in written.items() if not answer["problem"]}
    wait = 0.0 if wanted.local_checkpoints else _SHARING_SECONDS
    seen = party.ask("seen_tokens", folder=folder, tokens=list(names), wait=wait)
    left, before = 1, 0
    while left and left != before:  # a folder of one host may lie in one that another made
        before, left = left, sum(answer["left"] for answer in party.ask("tidy").values())
    return {
        name: Folder(
            answer["problem"],
            answer["disk"],
            frozenset(names[token] for token in seen.get(name, {}).get("seen", ())),
        )
        for name, answer in written.items()
    }


def _network(
    party: Party, hosts: tuple[Host, ...], wanted: Wanted, facts: Mapping[str, Facts]
) -> Network:
    """Takes ports on all hosts and has all others connect to them."""
    first = hosts[0].name
    if first not in party.names:
        return Network()
    set_address = wanted.master_address or wanted.environment.get("MASTER_ADDR")
    master = set_address or next(iter(facts[first].addresses), "")
    towards = master or "127.0.0.1"
    taken = party.ask(
        "listen",
        port=PerHost({name: wanted.master_port if name == first else 0 for name in party.names}),
        towards=towards,
    )
    free = party.ask("listen", port=0, towards=towards)
    own = taken.get(first, {"problem": "", "address": ""})
    addresses = {name: answer["address"] for name, answer in free.items()}
    addresses[first] = towards
    targets = [(name, addresses[name], answer["port"]) for name, answer in free.items()]
    connected = party.ask(
        "connect",
        targets=[[towards, wanted.master_port], *([a, port] for _, a, port in targets)],
        timeout=_CONNECT_SECONDS,
    )
    party.ask("close_ports")
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
