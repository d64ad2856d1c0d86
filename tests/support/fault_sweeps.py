"""Commands during which a call on a file fails, one call after the other, and are given again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from disk_faults import Fault, FaultyRuns
from launch import Finished
from runs import TIMED

ALL = "open,write,truncate,sync,rename,mkdir,unlink"
ROOM = "open,write,truncate,mkdir"  # what a full disk has no room for


@dataclass(frozen=True)
class Command:
    """A command line that writes below `folder`, in which `before` was there before, if given."""

    arguments: tuple[object, ...]
    folder: Path
    before: Path | None = None
    ranks: int = 1

    def run(self, runs: FaultyRuns, fault: Fault | None = None) -> list[Finished]:
        below = self.folder if fault else None
        return runs.run(*self.arguments, below=below, fault=fault, ranks=self.ranks)

    def restore(self) -> None:
        """Makes the folder what it was before the command."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.before is None:
            self.folder.mkdir()
        else:
            shutil.copytree(self.before, self.folder)


def undisturbed(runs: FaultyRuns, command: Command) -> dict[str, Any]:
    """What the command leaves if nothing fails."""
    command.restore()
    done = command.run(runs)
    assert all(rank.code == 0 for rank in done), done
    return contents(command.folder)


def sweep(
    runs: FaultyRuns,
    command: Command,
    kinds: str,
    effect: str,
    *,
    stays: bool = False,
    calls: Iterable[int] | None = None,
) -> int:
    """Fails one call after the other, or those with the numbers `calls`; returns how many.

    Asserts that each time the command ends well or says what is wrong, and that it ends well and
    with the same bytes if it is given again.
    """
    whole, tried = undisturbed(runs, command), 0
    for number in calls or count(1):
        fault = Fault(kinds, number, effect, stays)
        command.restore()
        done = command.run(runs, fault)
        if runs.calls < number:
            break
        tried += 1
        check_end(done, fault)
        again = command.run(runs)
        assert all(rank.code == 0 for rank in again), f"after {fault}: {again}"
        after = contents(command.folder)
        differing = {name for name in whole.keys() | after if whole.get(name) != after.get(name)}
        assert not differing, f"after {fault}: {differing}"
    return tried


def spread(runs: FaultyRuns, command: Command, kinds: str, points: int) -> list[int]:
    """Numbers of calls that are spread over all that the command makes."""
    command.restore()
    command.run(runs, Fault(kinds, 0))
    assert runs.calls >= points, f"{command} makes {runs.calls} calls of {kinds}"
    return [1 + point * (runs.calls - 1) // max(points - 1, 1) for point in range(points)]


def check_end(done: list[Finished], fault: Fault) -> None:
    """Asserts that a command ended with 0, or with 2 and one paragraph on what is wrong."""
    first, text = done[0], "\n".join(rank.output for rank in done)
    assert first.code in (0, 2), f"{fault}: {first.code}\n{text}"
    assert "Traceback" not in text, f"{fault}:\n{text}"
    if first.code == 2:
        assert first.output.count("cpo_ds: error: ") == 1, f"{fault}:\n{text}"
        said = first.output.rpartition("cpo_ds: error: ")[2].strip()
        assert "\n" not in said and "None:" not in said, f"{fault}:\n{text}"


def contents(folder: Path) -> dict[str, Any]:
    """The bytes of a command's files by name.

    Without logs, events, locks, finished work that is kept for a restart, older checkpoints, and
    the timings in metrics.
    """
    latest = folder / "checkpoints" / "latest"
    newest = latest.read_text() if latest.exists() else ""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_older = name.startswith("checkpoints/step-") and f"/{newest}/" not in name
        left_out = name.startswith(("logs/", "tensorboard/")) or ".cache/" in name
        if path.is_dir() or is_older or left_out or path.name == "lock":
            continue
        files[name] = path.read_bytes()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            files[name] = [{k: v for k, v in x.items() if k not in TIMED} for x in lines]
    return files
