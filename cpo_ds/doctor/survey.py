"""The planned run and the hosts' answers about it, as plain values that `checks` judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cpo_ds.doctor.hostfile import Host

# Python packages that take part in training, so every host needs the same versions.
PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "datasets",
    "numpy",
    "safetensors",
    "tokenizers",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "bitsandbytes",
    "mpi4py",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
)
PROGRAMS = ("mpirun", "orted", "prted")  # of Open MPI; prted is orted's name from version 5 on


@dataclass(frozen=True)
class PlannedRun:
    """The run that the hosts are checked for. Its paths are the same on every host."""

    hostfile: Path
    python: str
    package: Path  # folder of the package cpo_ds
    folder: Path  # working directory of the launcher and all ranks
    output: Path  # the run writes its files below it
    local_checkpoints: bool = False  # `use_node_local_storage`: the output need not be shared
    files: tuple[Path, ...] = ()  # recipe and DeepSpeed file, which every rank reads
    models: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()  # rank 0 alone reads them
    launcher: str = "pdsh"
    has_launcher: bool = True  # the launcher's program is on this host
    environment: Mapping[str, str] = field(default_factory=dict)  # of `.deepspeed_env`
    master_address: str | None = None  # None: DeepSpeed's launcher takes the first host's own
    master_port: int = 29500
    need_disk: float = 20.0  # GiB
    need_memory: float = 8.0  # GiB
    has_marked_hostfile: bool = False  # it begins with a byte order mark


@dataclass(frozen=True)
class Gpu:
    """One GPU in the words of nvidia-smi; memory in MiB."""

    name: str
    memory: int
    used: int
    driver: str


@dataclass(frozen=True)
class Facts:
    """A host's answers about itself.

    Only the fields without a default are known of a host on which the run's Python does not work.
    """

    hostname: str
    boot: str  # the kernel's boot id: two names of one host share it
    python: str
    python_version: str
    cores: int
    gpus: tuple[Gpu, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # installed package -> version
    programs: tuple[str, ...] = ()  # those of `PROGRAMS` that are installed
    sources: Mapping[str, str] = field(default_factory=dict)  # path in the package -> checksum
    commit: str = ""
    existing_paths: tuple[str, ...] = ()
    files: Mapping[str, str | None] = field(default_factory=dict)  # path -> checksum
    trees: Mapping[str, Mapping[str, int] | None] = field(default_factory=dict)  # -> sizes, bytes
    memory: float | None = None  # GiB
    shm: float | None = None  # GiB
    interfaces: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()  # in the order of `hostname -I`
    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> addresses


@dataclass(frozen=True)
class Trouble:
    """The reason why a host does not answer, and its remedy."""

    problem: str
    fix: str


@dataclass(frozen=True)
class Folder:
    """The run's output folder, seen from one host."""

    problem: str  # why the host cannot write to it; empty if it can
    disk: float | None = None  # GiB that are free
    sees: frozenset[str] = frozenset()  # hosts whose files are visible in it


@dataclass(frozen=True)
class Network:
    """Connections between hosts. A problem is a text, and empty if there is none."""

    master: str = ""  # rank 0's address, as the ranks are told it
    port_problem: str = ""  # why the first host cannot open the master port
    port_owner: str = ""  # the process that holds the master port
    to_master: Mapping[str, str] = field(default_factory=dict)  # host -> problem
    pairs: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (from, to) -> problem
    addresses: Mapping[str, str] = field(default_factory=dict)  # host -> its own towards rank 0


@dataclass(frozen=True)
class Survey:
    """All answers of all hosts. A host that did not answer is in `lost` and no other mapping."""

    run: PlannedRun
    hosts: tuple[Host, ...]
    lost: Mapping[str, Trouble] = field(default_factory=dict)
    facts: Mapping[str, Facts] = field(default_factory=dict)
    folders: Mapping[str, Folder] = field(default_factory=dict)
    clocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # ahead, uncertainty; s
    network: Network = Network()

    @property
    def ready(self) -> dict[str, Facts]:
        """Facts of the hosts on which the run's Python works: all their fields are known."""
        return {name: f for name, f in self.facts.items() if f.python == self.run.python}
