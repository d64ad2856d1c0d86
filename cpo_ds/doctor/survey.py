"""What is asked of the hosts, and what they answered: plain values, which `checks` judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cpo_ds.doctor.hostfile import Host

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
    "mpi4py",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
)
PROGRAMS = ("mpirun", "orted", "prted")


@dataclass(frozen=True)
class Wanted:
    """What a run over these hosts would need. Paths are the same on every host."""

    hostfile: Path
    python: str
    package: Path  # this package's folder
    folder: Path  # that the run is launched from
    output: Path  # folder that it writes to
    local_checkpoints: bool = False  # `use_node_local_storage`: the output need not be shared
    files: tuple[Path, ...] = ()  # that every rank reads: recipe, DeepSpeed file
    models: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()  # rank 0 alone reads them
    launcher: str = "pdsh"
    has_launcher: bool = True  # the launcher's program is on this host
    environment: Mapping[str, str] = field(default_factory=dict)  # `.deepspeed_env`
    master_address: str | None = None  # None: as DeepSpeed's launcher finds it
    master_port: int = 29500
    need_disk: float = 20.0  # GiB
    need_memory: float = 8.0  # GiB


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi tells; memory in MiB."""

    name: str
    memory: int
    used: int
    driver: str


@dataclass(frozen=True)
class Facts:
    """A host's answers; most are empty where its Python is not that of the run."""

    hostname: str
    boot: str  # the kernel's identity since it was started: the same for two names of one host
    python: str
    python_version: str
    cores: int
    gpus: tuple[Gpu, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    programs: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)  # path in the package -> checksum
    commit: str = ""
    there: tuple[str, ...] = ()  # paths that exist
    files: Mapping[str, str | None] = field(default_factory=dict)  # path -> checksum
    trees: Mapping[str, Mapping[str, int] | None] = field(default_factory=dict)  # -> sizes, bytes
    memory: float | None = None  # GiB
    shm: float | None = None  # GiB
    interfaces: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()  # as `hostname -I` has them
    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> addresses


@dataclass(frozen=True)
class Trouble:
    """Why a host does not answer, and what to do."""

    what: str
    fix: str


@dataclass(frozen=True)
class Folder:
    """The run's folder as one host sees it."""

    problem: str  # why it cannot be written, or nothing
    disk: float | None = None  # GiB that are free
    sees: frozenset[str] = frozenset()  # hosts whose files show here


@dataclass(frozen=True)
class Network:
    """Who can connect to whom. Problems are texts, empty where there is none."""

    master: str = ""  # the first host's address, as the ranks get it
    port_problem: str = ""  # why the master port cannot be taken
    port_owner: str = ""
    to_master: Mapping[str, str] = field(default_factory=dict)  # host -> problem
    pairs: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (from, to) -> problem
    addresses: Mapping[str, str] = field(default_factory=dict)  # on the way to the master


@dataclass(frozen=True)
class Survey:
    """All of it. Hosts that did not answer are in `lost` and in no other mapping."""

    wanted: Wanted
    hosts: tuple[Host, ...]
    lost: Mapping[str, Trouble] = field(default_factory=dict)
    facts: Mapping[str, Facts] = field(default_factory=dict)
    folders: Mapping[str, Folder] = field(default_factory=dict)
    clocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # ahead, uncertainty; s
    network: Network = Network()

    @property
    def ready(self) -> dict[str, Facts]:
        """The hosts that have the run's Python: those of which the rest was asked."""
        return {name: f for name, f in self.facts.items() if f.python == self.wanted.python}
