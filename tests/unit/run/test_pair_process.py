"""Many rows are tokenized by their own processes: the same pairs and errors, no process left."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pair_rows
import psutil
import pytest
from counted_work import counted

from cpo_ds.config import Config
from cpo_ds.data.pair_columns import pairs_fingerprint
from cpo_ds.data.pair_file import map_file, read_pairs
from cpo_ds.errors import EndedBySignal, UserError
from cpo_ds.run import pair_cache
from cpo_ds.run.pair_cache import cache_folder, keep_pairs
from cpo_ds.run.pairs import open_inputs, prepare_pairs

ROWS = 5000  # three pieces


@pytest.fixture(autouse=True)
def every_piece_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_cache, "FEW", 1)


def make(folder: Path) -> Config:
    path = pair_rows.write_rows(folder / "rows.jsonl", "x-alma", ROWS)
    held_out = pair_rows.write_rows(folder / "held_out.jsonl", "x-alma", 200, seed=3)
    return pair_rows.make(folder, path, data={"eval_path": str(held_out)})


def test_processes_give_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, said = make(tmp_path), list[str]()
    inputs = open_inputs(config, said.append)
    work = counted(lambda: keep_pairs(inputs, said.append))
    assert work >= 3
    kept = keep_pairs(inputs, said.append)
    assert not kept.is_new
    contents, train, held_out = read_pairs(map_file(kept.path), inputs.places())
    prepared = prepare_pairs(config, prints_counts=True)
    assert said == list(contents.lines)
    lines = [*said, f"training pairs: {len(train)}", *contents.train.lines]
    lines += [f"held-out pairs: {len(held_out)}", *contents.held_out.lines]
    assert capsys.readouterr().out.splitlines() == lines
    # In one process, with the same size of pieces: the same file.
    kept.path.rename(tmp_path / "by_processes")
    monkeypatch.setattr(pair_cache, "FEW", 100)
    again = keep_pairs(inputs, said.append)
    assert again.path.read_bytes() == (tmp_path / "by_processes").read_bytes()
    assert [pair.origin for pair in train] == [pair.origin for pair in prepared.train]


def test_the_first_bad_row_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    config = make(tmp_path)
    path = tmp_path / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (4500, 4800):  # behind the pieces that this process makes itself
        lines[bad] = b'{"source": "a"}\n'
    path.write_bytes(b"".join([*lines, b"no JSON"]))
    with pytest.raises(UserError, match=r"line 4501: field directions is missing"):
        keep_pairs(open_inputs(config, print), print)
    assert [file.name for file in cache_folder(config).iterdir()] in ([], ["files.json"])
    # A mistake in the first rows is told without any process.
    lines[5] = b"{}\n"
    path.write_bytes(b"".join(lines))
    pair_cache.make_in_processes, make_in_processes = None, pair_cache.make_in_processes  # type: ignore[assignment]
    try:
        with pytest.raises(UserError, match="line 6: field directions is missing"):
            keep_pairs(open_inputs(config, print), print)
    finally:
        pair_cache.make_in_processes = make_in_processes


def tokenizing(process: psutil.Process) -> tuple[psutil.Process, list[psutil.Process]]:
    """The process that a process has started to make pairs, and its own, when they all work."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for child in process.children():  # other tests may have left some
            with contextlib.suppress(psutil.NoSuchProcess):
                own = child.children() if "pair_process" in " ".join(child.cmdline()) else []
                if len(own) > 1:
                    return child, own
        time.sleep(0.05)
    raise AssertionError("no processes")


@pytest.mark.parametrize("which", ["the first", "one of its own"])
def test_a_killed_process_is_named(tmp_path: Path, which: str) -> None:
    config = make(tmp_path)
    inputs = open_inputs(config, print)

    def kill() -> None:
        first, own = tokenizing(psutil.Process())
        (first if which == "the first" else own[0]).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        kept = keep_pairs(inputs, print)
    except EndedBySignal as error:
        assert "the pairs were not made, because a process that tokenizes was ended" in str(error)
        assert not list(cache_folder(config).glob("*.arrow"))
    else:  # it had no piece yet, so that another one took its place
        assert which == "one of its own"
        _, train, _ = read_pairs(map_file(kept.path), inputs.places())
        expected = prepare_pairs(config, prints_counts=False).train
        assert pairs_fingerprint(train) == pairs_fingerprint(expected)
    killer.join()
    assert not list(cache_folder(config).glob(".unfinished-*"))


STARTS = """
import sys, pathlib, yaml
from cpo_ds.recipe import parse_config
from cpo_ds.run import pair_cache
from cpo_ds.run.pairs import open_inputs
pair_cache.FEW = 1
config = parse_config(yaml.safe_load(pathlib.Path(sys.argv[1]).read_text()), "test")
pair_cache.keep_pairs(open_inputs(config, print), print)
"""


def test_a_killed_start_leaves_no_process_and_nothing_that_is_trusted(tmp_path: Path) -> None:
    config = make(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-c", STARTS, str(recipe)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as start:
        first, own = tokenizing(psutil.Process(start.pid))
        start.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([first, *own], timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert list(cache_folder(config).glob(".unfinished-*"))
    inputs = open_inputs(config, print)
    kept = keep_pairs(inputs, print)
    assert kept.is_new and not list(cache_folder(config).glob(".unfinished-*"))
