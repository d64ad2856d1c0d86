"""Commands of `cpo-ds prepare` that cannot finish leave the disk as it was."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from many_rows import write_many
from preference_data import write
from repository import ROOT
from scored_rows import contents, scored

from cpo_ds import cli
from cpo_ds.data.candidates import CandidateRow, CandidateRows
from cpo_ds.errors import UserError

OUTPUTS = {
    "select": "out",
    "report": "report.html",
    "noise": "noise.jsonl",
    "candidates": "more.jsonl",
}


def command(name: str, folder: Path) -> list[str]:
    """A command on 300 rows, or on the pairs of these."""
    path = folder / "scored.jsonl"
    if not path.exists():
        write_many(path, 300)
        assert cli.main(["prepare", "select", "--input", str(path), "--output", "pairs"]) == 0
        Path("texts.txt").write_text("text\n" * 300)
    source = "pairs/pairs.jsonl" if name == "noise" else str(path)
    extra = ["--system", "x=texts.txt"] if name == "candidates" else []
    return ["prepare", name, "--input", source, "--output", OUTPUTS[name], *extra]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to make files larger than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("size", [0, 4096, 40_000])
def test_without_room_there_is_one_paragraph_and_no_file(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, size: int
) -> None:
    arguments = command(name, folder)
    capsys.readouterr()
    before = contents(folder)
    with largest_file(size):
        code = cli.main(arguments)
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1
    assert f"{OUTPUTS[name]} cannot be written: File too large; make room" in said
    assert contents(folder) == before
    assert cli.main(arguments) == 0


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_earlier_output_stays_when_a_row_is_refused_late(folder: Path, name: str) -> None:
    arguments = command(name, folder)
    assert cli.main(arguments) == 0
    before = contents(folder)
    path = Path(arguments[3])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"source": "x", "language_pair": "en-de", "candidates": 3}\n')
    assert cli.main(arguments) == 2
    path.write_bytes(whole)
    assert contents(folder) == before


def test_no_folder_is_made_for_an_output_that_is_not_written(folder: Path) -> None:
    write(folder / "equal.jsonl", [scored({"a": 0.5, "b": 0.5})])
    write(folder / "good.jsonl", [scored({"a": 0.5, "b": 0.75})])
    options = ["--output", "new/below/out"]
    assert cli.main(["prepare", "select", "--input", "equal.jsonl", *options]) == 2
    assert not (folder / "new").exists()
    assert cli.main(["prepare", "select", "--input", "good.jsonl", *options]) == 0
    assert (folder / "new/below/out/pairs.jsonl").is_file()
    noise = ["prepare", "noise", "--input", "good.jsonl", "--output", "other/below/out.jsonl"]
    assert cli.main(noise) == 2 and not (folder / "other").exists()


@pytest.mark.parametrize("name", ["select", "noise"])
def test_an_interrupt_leaves_nothing(folder: Path, name: str) -> None:
    """It comes when the unfinished output is there already."""
    arguments = command(name, folder)
    path = Path(arguments[3])
    path.write_bytes(path.read_bytes() * 100)
    before = sorted(folder.iterdir())
    running = subprocess.Popen(
        [sys.executable, "-m", "cpo_ds.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while sorted(folder.iterdir()) == before:
        assert running.poll() is None
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60)[1] == "cpo_ds: interrupted.\n"
    assert running.returncode == 130 and sorted(folder.iterdir()) == before


def test_rows_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    path = write_many(tmp_path / "scored.jsonl", 3)
    rows = CandidateRows(str(path))
    assert len(list(rows)) == len(list(rows)) == 3
    write_many(path, 4)
    with pytest.raises(UserError, match="changed while it was read; give the same command again"):
        list(rows)


def test_rows_of_a_folder_are_read_again_too(tmp_path: Path) -> None:
    for name in ("a", "b", ".hidden"):
        write_many(tmp_path / f"{name}.jsonl", 2)
    rows = CandidateRows(str(tmp_path))
    first: list[CandidateRow] = list(rows)
    write(tmp_path / ".unfinished" / "c.jsonl", [{}])
    assert [row.where for row in rows] == [row.where for row in first] and len(first) == 4
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(UserError, match="changed while it was read"):
        list(rows)
