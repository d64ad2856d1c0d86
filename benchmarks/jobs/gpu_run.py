"""Runs parts of `gpu.py` one after the other, each stopped at its limit, and notes how they ended.

Imports nothing but Python's own library. The notes are a line of results for each part, which say
what a later call need not run again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from jobs.gpu_parts import BENCHMARK, DONE, FAILED, NOT_RUN, STOPPED, Line, Part

_GRACE_SECONDS = 10.0  # for a part to end its own processes
_POLL_SECONDS = 0.1


class Notes:
    """The lines of all parts, in the file that a page is made of."""

    def __init__(self, file: Path, parts: Sequence[Part]) -> None:
        self.file = file
        texts = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        known: dict[str, Line] = {line["part"]: line for line in map(json.loads, texts)}
        # Parts of an earlier version are dropped.
        self._lines: dict[str, Line] = {
            part.name: known.get(part.name, {"outcome": NOT_RUN})
            | {"benchmark": BENCHMARK, "part": part.name, "about": part.about,
               "writes": part.writes}
            for part in parts
        }  # fmt: skip

    def line(self, part: Part) -> Line:
        """What is noted of a part."""
        return self._lines[part.name]

    def note(self, part: Part, line: Line) -> None:
        """Replaces a part's line. A kill leaves the file as it was before or as it is after."""
        names = ("benchmark", "part", "about", "writes")
        kept = {name: self._lines[part.name][name] for name in names}
        self._lines[part.name] = kept | line
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_text(
            "".join(json.dumps(line) + "\n" for line in self._lines.values()), encoding="utf-8"
        )
        unfinished.replace(self.file)


def run_part(
    part: Part,
    arguments: Sequence[str],
    *,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
    seconds: float,
) -> Line:
    """Runs a part in a folder; returns its outcome, why it is not done, and the time it took."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # Temporary files, models of many GiB among them, go with the part even if it is killed.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own,
        log.open("wb") as output,
    ):
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env={**environment, "TMPDIR": own},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = _wait(process, began + seconds)
        finally:
            stop(process)
    taken = time.monotonic() - began
    printed = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    line: Line = {"outcome": DONE, "seconds": round(taken, 1), "last": printed[-1][:300]}
    if code is None:
        line |= {"outcome": STOPPED, "why": f"not done after {taken / 60:.1f} minutes"}
    elif code:
        line |= {"outcome": FAILED, "why": f"exit code {code}: {line['last']}"}
    return line | {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")}


def _wait(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    """The exit code, or None if the time is up."""
    while process.poll() is None:
        if time.monotonic() > deadline:
            return None
        time.sleep(_POLL_SECONDS)
    return process.returncode


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a part with all its processes, those in sessions of their own included.

    An interrupt lets the part end its own processes and delete its temporary files. What is left
    after a moment is killed.
    """
    if process.poll() is not None:
        return
    started = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        started |= descendants(process.pid)
    # A process number of one that has ended is not taken again so soon.
    for pid in [process.pid, *started]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and theirs (Linux)."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    known: set[int] = set()
    waiting = [pid]
    while waiting:
        new = children.get(waiting.pop(), [])
        known.update(new)
        waiting.extend(new)
    return known
