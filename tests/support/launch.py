"""Starts the program as its users do, or rank by rank, and returns exit codes and outputs.

`deepspeed` goes through the real launcher. `on_ranks` calls a function on several ranks that are
forked from a process which has imported everything already, so that a run costs no imports.
Tests run on the CPU, even if the machine has a GPU, and use no network.
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


class ForkedRanks:
    """Ranks of one run, forked from a process that has imported everything, without a launcher.

    `finish`, `kill` and the functions of `runs` take it in the place of a launcher's process.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        arguments: list[Any],
        *,
        ranks: int,
        environment: dict[str, str] | None = None,
    ) -> None:
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        master["WORLD_SIZE"] = str(ranks)
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / str(rank) for rank in range(ranks)]
        self.processes = []
        for rank, file in enumerate(self._files):
            own = master | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (environment or {})
            inputs = (function, arguments, ENVIRONMENT | own, str(file))
            process = _fork_server().Process(target=_be_a_rank, args=inputs, daemon=True)
            self.processes.append(process)
        for process in self.processes:
            process.start()
        self._first_failure = 0

    def poll(self) -> int | None:
        """The exit code of the rank that failed first, else 0; None while a rank runs."""
        if not self._first_failure:
            failed = [process.exitcode for process in self.processes if process.exitcode]
            self._first_failure = failed[0] % 256 if failed else 0
        if any(process.is_alive() for process in self.processes):
            return None
        return self._first_failure

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def wait(self, timeout: float, patience: float) -> list[Finished]:
        """Waits for all ranks; `patience` seconds after one has failed the others are killed.

        After `timeout` seconds all are killed.
        """
        deadline, has_failed = time.monotonic() + timeout, False
        while self.poll() is None and time.monotonic() < deadline:
            if self._first_failure and not has_failed:
                deadline, has_failed = min(deadline, time.monotonic() + patience), True
            time.sleep(0.02)
        self.kill()
        outputs = [f.read_text(errors="replace") if f.exists() else "" for f in self._files]
        self._folder.cleanup()
        return [Finished(p.exitcode, o) for p, o in zip(self.processes, outputs, strict=True)]


Run = subprocess.Popen[str] | ForkedRanks


def kill(run: Run) -> None:
    """kill -9 of all processes of a run."""
    if isinstance(run, ForkedRanks):
        run.kill()
    else:
        os.killpg(run.pid, signal.SIGKILL)


def finish(run: Run, timeout: float = 240, *, patience: float = 240) -> Finished:
    """Waits for the end of a run. Raises `AssertionError` if it takes more than `timeout` s.

    `patience` s after one of several forked ranks has failed, the others are killed.
    """
    if isinstance(run, ForkedRanks):
        deadline = time.monotonic() + timeout
        done = run.wait(timeout, patience)
        output = "".join(rank.output for rank in done)
        assert time.monotonic() < deadline, f"still running after {timeout} s:\n{output}"
        code = run.poll()
        assert code is not None
        return Finished(code, output)
    try:
        output, _ = run.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(run)
        output, _ = run.communicate()
        raise AssertionError(f"still running after {timeout} s:\n{output}") from None
    return Finished(run.returncode, output)


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


def start_ranks(*arguments: object, ranks: int = 2, **environment: str) -> ForkedRanks:
    """Starts training on several ranks without a launcher, which costs no imports."""
    return ForkedRanks(_main, [str(a) for a in arguments], ranks=ranks, environment=environment)


def main_on_ranks(*arguments: object, ranks: int = 1, **environment: str) -> list[Finished]:
    """Trains on forked ranks and returns each one's end; no launcher watches over them."""
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

    A second after a rank has failed the others are killed, as by a launcher.
    """
    run = ForkedRanks(function, arguments, ranks=ranks, environment=environment)
    return run.wait(timeout, patience=1)


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
def _own_path() -> str:
    """The folders that this process imports from, without its environment's packages.

    Programs of another environment, such as COMET's, would take these for their own.
    """
    return os.pathsep.join(path for path in sys.path if path and "site-packages" not in path)


def _fork_server() -> Any:
    """Forks from a fresh process with one thread, never from pytest's own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    before = os.environ.copy()
    os.environ.update(ENVIRONMENT | {"PYTHONPATH": _own_path()})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context
