"""Preparing preferences on a disk that fails: each call on a file, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import translation_runs
from disk_faults import FaultyRuns
from fault_sweeps import ALL, ROOM, Command, sweep, undisturbed
from helpers import save_tiny_model
from noise_runs import pair
from preference_data import write
from scored_rows import scored


def candidates(folder: Path, *options: object) -> Command:
    source = translation_runs.write(folder / "in.txt", *translation_runs.SENTENCES[:6])
    output = folder / "out" / "candidates.jsonl"
    arguments = ("candidates", "--input", source, "--language-pair", "en-de", "--output", output)
    return Command(("prepare", *arguments, *options), folder / "out")


def candidates_of_a_model(folder: Path) -> Command:
    model = save_tiny_model(folder / "model")
    few = ["--dtype", "float32", "--beams", "1", "--max-new-tokens", "4", "--batch-tokens", "128"]
    return candidates(folder, "--model", model, *few)


def candidates_of_a_file(folder: Path) -> Command:
    texts = translation_runs.write(folder / "texts.txt", *"abcdef")
    return candidates(folder, "--system", f"x={texts}")


def score(folder: Path) -> Command:
    rows = [scored({"a": 0.9}, source=f"Good morning {number}.") for number in range(6)]
    options = ("--metric", "chrf", "--metric", "bleu")
    return _on(folder, "score", rows, "scored.jsonl", *options)


def select(folder: Path) -> Command:
    return _on(folder, "select", [scored({"a": 0.75, "b": 0.25, "reference": 0.5})] * 4, "pairs")


def noise(folder: Path) -> Command:
    return _on(folder, "noise", [pair(number) for number in range(6)], "noised.jsonl")


def report(folder: Path) -> Command:
    rows = [scored({"a": 0.75, "b": 0.25, "reference": 0.5})] * 4
    return _on(folder, "report", rows, "page.html")


def _on(folder: Path, step: str, rows: list[Any], output: str, *options: object) -> Command:
    source, out = write(folder / "in.jsonl", rows), folder / "out"
    arguments = ("prepare", step, "--input", source, "--output", out / output, *options)
    return Command(arguments, out)


COMMANDS = {
    candidates_of_a_file: 6,
    candidates_of_a_model: 10,
    score: 10,
    select: 24,
    noise: 6,
    report: 6,
}


@pytest.mark.parametrize("make", COMMANDS, ids=lambda make: make.__name__)
def test_a_call_that_fails(
    faulty_runs: FaultyRuns, tmp_path: Path, make: Callable[[Path], Command]
) -> None:
    command = make(tmp_path)
    assert sweep(faulty_runs, command, ALL, "EIO") >= COMMANDS[make]


@pytest.mark.parametrize("make", [candidates_of_a_model, score, select])
def test_a_disk_that_is_full_from_some_call_on(
    faulty_runs: FaultyRuns, tmp_path: Path, make: Callable[[Path], Command]
) -> None:
    command = make(tmp_path)
    assert sweep(faulty_runs, command, ROOM, "ENOSPC", stays=True) >= COMMANDS[make] / 2


def test_an_output_that_is_replaced(faulty_runs: FaultyRuns, tmp_path: Path) -> None:
    """Until the new folder is whole the old one stays, or is beside it."""
    first = select(tmp_path)
    undisturbed(faulty_runs, first)
    first.folder.rename(tmp_path / "before")
    command = Command(first.arguments, first.folder, before=tmp_path / "before")
    assert sweep(faulty_runs, command, "rename,mkdir,unlink", "EIO", stays=True) > 12
