"""A process that has imported everything and forks a process, or several ranks, for each request.

Requests and answers are lines of JSON. Its own calls never fail, since the variables of the faults
are set in the forked processes only.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    # Everything that a command may import, so that a fork costs none of it.
    from launch import _PRELOAD, ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    for name in [*_PRELOAD, *_COMMANDS]:
        __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), file=answers, flush=True)


_COMMANDS = [
    "cpo_ds.cli",
    "cpo_ds.checkpoint.universal_command",
    "cpo_ds.export.from_checkpoint",
    "cpo_ds.report.page",
    "cpo_ds.prepare.analyses.sections",
    "cpo_ds.prepare.candidates",
    "cpo_ds.prepare.noise",
    "cpo_ds.prepare.score",
    "cpo_ds.prepare.select",
    "cpo_ds.translate.generate",
    "cpo_ds.scoring.run",
    "sacrebleu",
]


def serve(request: dict[str, Any]) -> list[list[Any]]:
    """Runs a request's ranks; returns the exit code and the output of each."""
    files = [Path(f"{request['output']}.{rank}") for rank in range(len(request["environments"]))]
    processes = [
        _fork(request["arguments"], environment, file)
        for environment, file in zip(request["environments"], files, strict=True)
    ]
    codes = _wait(processes, request["timeout"], request["patience"])
    return [
        [codes[p], f.read_text(errors="replace")] for p, f in zip(processes, files, strict=True)
    ]


def _wait(processes: list[int], timeout: float, patience: float) -> dict[int, int | None]:
    """The exit code of each process; None if it was killed, as it ran too long."""
    codes: dict[int, int | None] = {}
    deadline, has_failed = time.monotonic() + timeout, False
    while len(codes) < len(processes):
        for process in set(processes) - set(codes):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        if any(codes.values()) and not has_failed:
            deadline, has_failed = min(deadline, time.monotonic() + patience), True
        if time.monotonic() > deadline:
            for process in set(processes) - set(codes):
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
                codes[process] = None
        time.sleep(0.01)
    return codes


def _fork(arguments: list[str], environment: dict[str, str], output: Path) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        code = _run(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python's own way to end
            code = code or 120
    os._exit(code)


def _run(arguments: list[str]) -> int:
    """Runs `train ...` or `cpo-ds ...`, by its arguments."""
    if arguments[0] == "train":
        from cpo_ds.run.main import main as train

        return train(arguments[1:])
    from cpo_ds import cli
    from cpo_ds.ranks.quiet import silence_after_import

    silence_after_import()  # all is imported before the program can silence it
    return cli.main(arguments)


if __name__ == "__main__":
    main()
