"""What `cpo-ds doctor` asks about this machine, as plain values that `checks.machine` judges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from cpo_ds.doctor import remote
from cpo_ds.doctor.survey import PACKAGES, Gpu
from cpo_ds.doctor.torch_probe import MARK
from cpo_ds.errors import one_line
from cpo_ds.shipped import DEEPSPEED_FILES
from cpo_ds.storage.hub_names import offline_variable

_PACKAGE = Path(__file__).resolve().parents[1]
_HUB_SECONDS, _TORCH_SECONDS = 4.0, 120.0
_BUILD_TOOLS = ("c++", "ninja")  # DeepSpeed compiles operations of its own at their first use


@dataclass(frozen=True)
class Machine:
    """Answers about this machine. Sizes in GiB; None if they are not known."""

    python: str = ""
    python_range: str = ""  # that the package supports, like ">=3.10,<3.14"; "" if not known
    versions: Mapping[str, str] = field(default_factory=dict)  # installed package -> version
    required: Mapping[str, str] = field(default_factory=dict)  # package -> supported versions
    gpus: tuple[Gpu, ...] = ()  # by nvidia-smi
    cores: int = 1
    torch: Mapping[str, Any] = field(default_factory=dict)  # the answer of `torch_probe`
    torch_problem: str = ""  # why there is no such answer
    memory: float | None = None
    shm: float | None = None
    disks: Mapping[str, float] = field(default_factory=dict)  # folder -> free
    hub: str = ""  # its address
    hub_seconds: float | None = None  # that its answer took
    hub_problem: str = ""
    offline: str = ""  # the environment variable that keeps libraries from asking the hub
    deepspeed_files: Mapping[str, str] = field(default_factory=dict)  # name -> why it is bad, or ""
    build_tools: tuple[str, ...] = ()  # those that are missing


def examine(output: Path) -> Machine:
    """Asks everything; `output` is the folder that runs write to."""
    devices = remote.devices()
    torch, torch_problem = _ask_torch()
    address, seconds, problem = _ask_hub()
    required, python_range = _supported()
    facts = remote.facts(
        str(_PACKAGE), packages=list(dict.fromkeys((*PACKAGES, *required))), programs=[], paths=[],
        files=[], trees=[], hosts=[],
    )  # fmt: skip
    cache = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    folders = [_existing(output), _existing(Path(cache).expanduser())]
    disks = {str(folder): shutil.disk_usage(folder).free / 2**30 for folder in folders}
    return Machine(
        python=devices["python_version"],
        python_range=python_range,
        versions=facts["versions"],
        required=required,
        gpus=tuple(_gpu(values) for values in devices["gpus"]),
        cores=devices["cores"],
        torch=torch,
        torch_problem=torch_problem,
        memory=facts["memory"],
        shm=facts["shm"],
        disks=disks,
        hub=address,
        hub_seconds=seconds,
        hub_problem=problem,
        offline=offline_variable() or "",
        deepspeed_files={name: _json_problem(name) for name in DEEPSPEED_FILES.names()},
        build_tools=tuple(tool for tool in _BUILD_TOOLS if shutil.which(tool) is None),
    )


def _gpu(values: list[str]) -> Gpu:
    name, memory, used, driver = values
    mib = [int(value) if value.isdigit() else 0 for value in (memory, used)]  # or [N/A]
    return Gpu(name, mib[0], mib[1], driver)


def _existing(folder: Path) -> Path:
    """A folder, or the first one above it that exists."""
    folder = folder.absolute()
    return next((f for f in (folder, *folder.parents) if f.is_dir()), folder)


def _ask_torch() -> tuple[dict[str, Any], str]:
    """The answer of `torch_probe`, and why there is none."""
    command = [sys.executable, "-m", "cpo_ds.doctor.torch_probe"]
    path = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return {}, f"torch did not answer in {_TORCH_SECONDS:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK)), ""
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return {}, f"torch cannot be asked ({one_line(last)})"


def _ask_hub() -> tuple[str, float | None, str]:
    """The hub's address, the seconds that its answer took, and why there was none."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if offline_variable():
        return address, None, ""
    start = time.monotonic()
    try:
        urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=_HUB_SECONDS
        ).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        return address, None, one_line(getattr(error, "reason", None) or error)
    return address, time.monotonic() - start, ""


def _supported() -> tuple[dict[str, str], str]:
    """The supported versions of required packages and of Python, as this package declares them."""
    try:
        from packaging.requirements import Requirement

        ours = metadata.distribution("cpo-ds")
    except ImportError:  # no packaging, or a checkout that was not installed
        return {}, ""
    requirements = [Requirement(text) for text in ours.requires or []]
    return {
        r.name: str(r.specifier) for r in requirements if r.marker is None or r.marker.evaluate()
    }, ours.metadata["Requires-Python"] or ""


def _json_problem(name: str) -> str:
    """Why a shipped DeepSpeed file is not a JSON object; empty if it is one."""
    try:
        settings = json.loads(DEEPSPEED_FILES.find(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return one_line(error)
    return "" if isinstance(settings, dict) else "it is no JSON object"
