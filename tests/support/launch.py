"""Starts the program as its users do, or rank by rank, always with an end: exit code and output.

`deepspeed` goes through the real launcher. `on_ranks` calls a function on several ranks that are
forked from a process which has imported everything already, so that a run costs no imports.
Tests run on the CPU, also where there is a GPU, and never reach for the network.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from repository import ROOT

TRAIN = ROOT / "cpo_ds" / "train.py"
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    "TOKENIZERS_PARALLELISM": "false",
}
_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PRELOAD = ["deepspeed", "peft", "transformers.models.llama.modeling_llama", "datasets"]
_PRELOAD += [
    "cpo_ds.run.build",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "cpo_ds.run.main",
    "cpo_ds.run.session",
    "cpo_ds.run.trainer",
    "cpo_ds.export.folder",
    "cpo_ds.run.folder",
    "cpo_ds.ranks.watch",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "setuptools",
    "once",
]


@dataclass(frozen=True)
class Finished:
    """A run that is over; `output` is what it printed, standard error included."""

    code: int
    output: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    return recipe


def start(command: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts a command in a session of its own; `kill` ends all of it."""
    inherited = {k: v for k, v in os.environ.items() if k not in _OF_A_LAUNCHER}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=inherited | ENVIRONMENT | (environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9 of the process and everything that it started."""
    os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen[str], timeout: float = 240) -> Finished:
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{output}") from None
    return Finished(process.returncode, output)


def deepspeed_command(*arguments: object, ranks: int = 2, script: Path = TRAIN) -> list[str]:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q"]
    where = ["--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return [*launcher, *where, str(script), *map(str, arguments)]


def deepspeed(*arguments: object, ranks: int = 2) -> Finished:
    """`deepspeed --num_accelerators N cpo_ds/train.py ...`."""
    return finish(start(deepspeed_command(*arguments, ranks=ranks)))


def alone(*arguments: object) -> Finished:
    """`python cpo_ds/train.py ...`."""
    return finish(start([sys.executable, str(TRAIN), *map(str, arguments)]))


def main_on_ranks(*arguments: object, ranks: int = 1, **environment: str) -> list[Finished]:
    """What `deepspeed cpo_ds/train.py ...` does on each rank; no launcher watches over them."""
    return on_ranks(_main, [str(a) for a in arguments], ranks=ranks, environment=environment)


def _main(*arguments: str) -> int:
    from cpo_ds.run.main import main

    return main(list(arguments))


def on_ranks(
    function: Callable[..., int | None],
    arguments: list[Any],
    *,
    ranks: int = 1,
    environment: dict[str, str] | None = None,
    timeout: float = 240,
) -> list[Finished]:
    """Calls an importable function in `ranks` processes; its result is the exit code.

    Once a rank has failed the others get a moment, then are killed, as a launcher does.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(ranks)]
        processes = []
        for rank, file in enumerate(files):
            own = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (environment or {})
            inputs = (function, arguments, ENVIRONMENT | own, str(file))
            processes.append(_fork_server().Process(target=_be_a_rank, args=inputs, daemon=True))
        for process in processes:
            process.start()
        _wait(processes, timeout)
        outputs = [file.read_text(errors="replace") if file.exists() else "" for file in files]
    return [Finished(p.exitcode, text) for p, text in zip(processes, outputs, strict=True)]


def _wait(processes: list[Any], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while any(process.is_alive() for process in processes):
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + 1)
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    for process in processes:
        process.kill()
        process.join()


def _be_a_rank(
    function: Callable[..., int | None], arguments: list[Any], environment: dict, output: str
) -> None:
    os.environ.update(environment)
    os.chdir(ROOT)
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(function(*arguments))


@functools.cache
def _fork_server() -> Any:
    """Forks from a fresh process with one thread, never from pytest's own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    before = os.environ.copy()
    os.environ.update(ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context
