"""Reads and tokenizes many rows by all cores of this host, in processes of their own.

A rank must not be forked, since it has threads that exchange data with other ranks. So it starts a
clean process, and that one shares the pieces out through the datasets library:

WORK/raw-0.arrow       pieces of the raw rows of data.path, as they were read
WORK/made-0_*.arrow    what became of them
WORK/pairs             the file of pairs
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa  # type: ignore[import-untyped]

from cpo_ds.data.assemble import Say
from cpo_ds.data.pair_inputs import Inputs
from cpo_ds.data.pieces import Piece
from cpo_ds.errors import EXIT_RANK_LOST, EXIT_USER_ERROR, EndedBySignal, UserError
from cpo_ds.ranks.liveness import ByteWatch, count_work

_LOOK_SECONDS = 1.0  # between looks at whether the processes make progress
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_PIECES = pa.schema([("piece", pa.large_binary())])
_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
_KILLED = (os.CLD_KILLED, os.CLD_DUMPED)


def make_in_processes(inputs: Inputs, work: Path, say: Say) -> bytes:
    """Writes the file `pairs` in the folder `work`; returns its checksum.

    Raises `UserError` for data that cannot be trained with, `EndedBySignal` if a process is ended,
    and `OSError` if the disk is full.
    """
    (work / "inputs").write_bytes(pickle.dumps(inputs))
    # The process is no rank of this run, and needs no GPU.
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
    package = Path(__file__).resolve().parents[2]
    paths = filter(None, [str(package), environment.get("PYTHONPATH")])
    environment |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONSAFEPATH": "1",  # nothing in the current folder hides a library
        "TOKENIZERS_PARALLELISM": "false",  # each core has a process
    }
    command = [sys.executable, "-m", __name__, str(work), str(os.getpid())]
    outcome: dict[str, Any] = {}
    with (work / "printed").open("w+b") as printed:
        code = _follow(command, environment, printed, work, lambda told: _take(told, outcome, say))
        printed.seek(0)
        last = printed.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    if "error" in outcome:
        raise UserError(outcome["error"])
    if "errno" in outcome:
        raise OSError(*outcome["errno"])
    if number := outcome.get("died", max(0, -code)):
        raise EndedBySignal(
            "the pairs were not made, because a process that tokenizes was ended by signal "
            f"{number}, {signal.strsignal(number)} (9 often means that the host ran out of "
            "memory). Start the run again."
        )
    if "checksum" not in outcome:
        raise UserError(
            "the pairs could not be made: the process that reads and tokenizes them ended with "
            f"code {code}: {(last or ['it printed nothing'])[0]}"
        )
    return bytes.fromhex(outcome["checksum"])


def _take(told: dict[str, Any], outcome: dict[str, Any], say: Say) -> None:
    if "say" in told:
        say(told["say"])
    else:
        outcome |= told


def _follow(
    command: list[str],
    environment: dict[str, str],
    printed: Any,
    work: Path,
    take: Callable[[dict[str, Any]], None],
) -> int:
    """Runs a process to its end; returns its exit code. What it writes to `work` counts as work.

    `take` gets each of the JSON objects that it writes, a line each, to the file whose descriptor
    is the last argument of the command. `printed` gets what its libraries print.
    """
    receive, send = os.pipe()
    process = subprocess.Popen(
        [*command, str(send)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=subprocess.STDOUT,
        pass_fds=[send],
        start_new_session=True,  # Ctrl-C is for the run, which may finish its step after it
    )
    os.close(send)
    progress, size, rest = ByteWatch(process.pid), 0, b""
    try:
        while True:
            ready, _, _ = select.select([receive], [], [], _LOOK_SECONDS)
            before, size = size, _size(work)
            if size != before or progress.has_moved(_LOOK_SECONDS):
                count_work()
            if not ready and process.poll() is not None:
                return process.returncode
            if not ready:
                continue
            data = os.read(receive, 2**16)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                take(json.loads(line))
            if not data:
                return process.wait()
    except BaseException:  # also if this rank is interrupted
        process.kill()
        process.wait()
        raise
    finally:
        os.close(receive)


def _size(folder: Path) -> int:
    """Bytes in a folder's files."""
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # it was renamed meanwhile
            total += file.stat().st_size
    return total


# In the process.


def main(work: Path, parent: int, descriptor: int) -> int:
    """Makes the pairs; returns the exit code. Writes what happens, a JSON object a line."""
    _end_with_parent()
    if os.getppid() != parent:  # it has ended already
        return 1
    os.register_at_fork(after_in_child=_begin_helper)
    told = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)

    def tell(values: dict[str, Any]) -> None:
        told.write(json.dumps(values) + "\n")

    signal.signal(signal.SIGCHLD, lambda *_: _end_if_helper_died(tell))
    try:
        inputs = _inputs(str(work / "inputs"))
        sources = [_source(inputs, path, work, n) for n, path in enumerate(inputs.paths())]
        with (work / "pairs").open("wb") as file:
            checksum = inputs.assemble(sources, file, lambda text: tell({"say": text}))
        tell({"checksum": checksum.hex()})
    except UserError as error:
        tell({"error": str(error)})
        return EXIT_USER_ERROR
    except OSError as error:
        tell({"errno": [error.errno, error.strerror or str(error), error.filename]})
        return EXIT_USER_ERROR
    return 0


@functools.cache
def _inputs(path: str) -> Inputs:
    """Tokenizer and settings, loaded once in each process from the file that the rank wrote."""
    return pickle.loads(Path(path).read_bytes())


def _source(
    inputs: Inputs, path: str | None, work: Path, number: int
) -> Callable[[], Iterator[Piece]]:
    """Reads a path and makes its pieces; returns a function that reads them again."""
    import datasets

    datasets.disable_progress_bars()
    raw = work / f"raw-{number}.arrow"
    with raw.open("wb") as file, pa.ipc.new_stream(file, _PIECES) as stream:
        for rows in inputs.raw_pieces(path):
            stream.write_batch(pa.record_batch([[pickle.dumps(rows)]], schema=_PIECES))
    read = datasets.Dataset.from_file(str(raw))
    made = read.map(
        _make,
        batched=True,
        batch_size=1,
        num_proc=min(len(read), len(os.sched_getaffinity(0))),
        fn_kwargs={"path": str(work / "inputs")},
        features=datasets.Features({"piece": datasets.Value("large_binary")}),
        cache_file_name=str(work / f"made-{number}.arrow"),
        writer_batch_size=1,
        load_from_cache_file=False,
        new_fingerprint=f"made-{number}",
    )

    def pieces() -> Iterator[Piece]:
        for table in made.with_format("arrow").iter(batch_size=1):
            yield pickle.loads(table["piece"][0].as_buffer())

    return pieces


def _make(batch: dict[str, list[bytes]], path: str) -> dict[str, list[bytes]]:
    """Makes a piece, in one of several processes."""
    maker = _inputs(path).maker
    return {"piece": [pickle.dumps(maker.make(pickle.loads(raw))) for raw in batch["piece"]]}


def _end_with_parent() -> None:
    """Lets this process be killed when its parent ends, so that none is left of a killed run."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)


def _begin_helper() -> None:
    """Prepares a process that the datasets library has forked."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _end_with_parent()


def _end_if_helper_died(tell: Callable[[dict[str, Any]], None]) -> None:
    """Ends this process if one that it forked was killed; the library might wait for ever."""
    for helper in psutil.Process().children():
        with contextlib.suppress(OSError):
            end = os.waitid(os.P_PID, helper.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            # The library itself ends its processes by SIGTERM.
            if end and end.si_code in _KILLED and end.si_status != signal.SIGTERM:
                tell({"died": end.si_status})
                os._exit(EXIT_RANK_LOST)


if __name__ == "__main__":
    # By its name, so that other processes find its functions.
    from cpo_ds.run import pair_process

    sys.exit(pair_process.main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
