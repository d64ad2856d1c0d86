"""Surveys of healthy hosts, and changes that spoil them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cpo_ds.doctor.hostfile import Host
from cpo_ds.doctor.survey import Facts, Folder, Gpu, Network, PlannedRun, Survey, Trouble

GPU = Gpu("A100", 81920, 0, "550.54")
PLANNED = PlannedRun(
    Path("hosts"), "/v/python", Path("/c/cpo_ds"), Path("/c"), Path("/runs/x"),
    files=(Path("/c/r.yaml"),), models=(Path("/m"),), data=(Path("/d.jsonl"),),
)  # fmt: skip


def healthy(count: int) -> Survey:
    """A survey of `count` hosts without a fault: gpu1, gpu2, ..."""
    names = [f"gpu{i + 1}" for i in range(count)]
    addresses = {name: (f"10.0.0.{i + 1}",) for i, name in enumerate(names)}

    def facts(name: str) -> Facts:
        return Facts(
            hostname=name, boot=name, python="/v/python", python_version="3.11.7", cores=64,
            gpus=(GPU, GPU), versions={"torch": "2.13.0", "mpi4py": "4.1"}, programs=("orted",),
            sources={"train.py": "1", "losses.py": "2"}, commit="c0ffee",
            existing_paths=("/c", "/d.jsonl"), files={"/c/r.yaml": "3"},
            trees={"/m": {"a.safetensors": 2**30, "config.json": 5}},
            memory=100, shm=50, interfaces=("lo", "eth0"), addresses=addresses[name],
            resolved=addresses | {name: ("127.0.1.1",)},
        )  # fmt: skip

    everyone = frozenset(names)
    return Survey(
        PLANNED,
        tuple(Host(name, 2, line) for line, name in enumerate(names, start=1)),
        facts={name: facts(name) for name in names},
        folders={name: Folder("", 500, everyone) for name in names},
        clocks=dict.fromkeys(names, (0.001, 0.01)),
        network=Network(
            "10.0.0.1",
            to_master=dict.fromkeys(names[1:], ""),
            pairs={(a, b): "" for a in names for b in names if a != b},
            addresses={name: own[0] for name, own in addresses.items()},
        ),
    )


def of_gpu2(**changed: Any) -> Any:
    """A change of a survey: other facts on the second host."""

    def change(survey: Survey) -> Survey:
        facts = dict(survey.facts)
        facts["gpu2"] = replace(facts["gpu2"], **changed)
        return replace(survey, facts=facts)

    return change


def network(**changed: Any) -> Any:
    return lambda survey: replace(survey, network=replace(survey.network, **changed))


def planned(**changed: Any) -> Any:
    return lambda survey: replace(survey, run=replace(survey.run, **changed))


def slots_of_gpu2(slots: int) -> Any:
    def change(survey: Survey) -> Survey:
        first, second, *others = survey.hosts
        return replace(survey, hosts=(first, replace(second, slots=slots), *others))

    return change


def folder_of_gpu2(folder: Folder) -> Any:
    return lambda survey: replace(survey, folders=dict(survey.folders) | {"gpu2": folder})


def lose_gpu2(survey: Survey) -> Survey:
    rest = {name: own for name, own in survey.facts.items() if name != "gpu2"}
    return replace(survey, lost={"gpu2": Trouble("it is off", "turn it on")}, facts=rest)
