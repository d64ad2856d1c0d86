"""`checkpoint.resume: restart` moves an earlier run aside, once for each start."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.run.anew import (
    check_inputs_stay,
    finish_move,
    is_again,
    move_aside,
    start_variables,
)

OF_A_RUN = ("checkpoints/step-00000001/a.pt", "config.yaml", "export/README.md", "metrics.jsonl")
OF_THE_USER = ("notes.txt", "data/pairs.jsonl", "lock", "reference/1234.npz", "pairs/1.arrow")


def make_run(folder: Path, content: str) -> dict[str, str]:
    for name in OF_A_RUN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return dict.fromkeys(OF_A_RUN, content)


def files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_runs_are_moved_to_numbered_folders_and_other_files_stay(tmp_path: Path) -> None:
    for name in OF_THE_USER:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    first = make_run(tmp_path, "first")
    assert move_aside(tmp_path, {}) == tmp_path / "earlier-1"
    assert files(tmp_path / "earlier-1") == first
    assert files(tmp_path).keys() - {f"earlier-1/{name}" for name in first} == {
        *OF_THE_USER, "begun.json",
    }  # fmt: skip
    second = make_run(tmp_path, "second")
    assert move_aside(tmp_path, {}) == tmp_path / "earlier-2"
    assert files(tmp_path / "earlier-2") == second | {"begun.json": "{}\n"}
    assert files(tmp_path / "earlier-1") == first


def test_without_an_earlier_run_nothing_is_moved(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert move_aside(tmp_path, {"SLURM_JOB_ID": "7"}) is None
    assert files(tmp_path) == {"notes.txt": "mine", "begun.json": '{"SLURM_JOB_ID": "7"}\n'}


SUPERVISED = {"PYTHON_CPO_DS_RUN": "host-1-2"}
SLURM, REQUEUED = {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "abc", "TORCHELASTIC_RESTART_COUNT": "0"}


@pytest.mark.parametrize(
    ("first", "second", "again"),
    [
        ({}, {}, False),
        (SUPERVISED, SUPERVISED, True),
        (SUPERVISED, {"PYTHON_CPO_DS_RUN": "host-1-3"}, False),
        (SUPERVISED, {}, False),
        (SLURM, REQUEUED, True),
        (SLURM, SLURM, False),  # twice by hand in one allocation
        (SLURM, REQUEUED | {"SLURM_JOB_ID": "8"}, False),
        (SLURM | SUPERVISED, REQUEUED | {"PYTHON_CPO_DS_RUN": "host-9-9"}, True),
        (SLURM | SUPERVISED, SLURM | SUPERVISED, True),  # a fault within the allocation
        (ELASTIC, ELASTIC | {"TORCHELASTIC_RESTART_COUNT": "2"}, True),
        (ELASTIC, ELASTIC, False),
        (ELASTIC, {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}, False),
        (SLURM, REQUEUED | {"SLURM_RESTART_COUNT": "?"}, False),
    ],
)
def test_a_start_that_is_made_again_goes_on(
    tmp_path: Path, first: dict[str, str], second: dict[str, str], again: bool
) -> None:
    make_run(tmp_path, "old")
    assert not is_again(tmp_path, first)
    assert move_aside(tmp_path, first) is not None
    new = make_run(tmp_path, "new")
    assert is_again(tmp_path, second) == again
    moved = move_aside(tmp_path, second)
    assert moved == (None if again else tmp_path / "earlier-2")
    kept = tmp_path if again else tmp_path / "earlier-2"
    assert {name: files(kept)[name] for name in new} == new


def test_the_variables_of_a_start() -> None:
    environment = {"HOME": "/", "TORCHELASTIC_RUN_ID": "none", **REQUEUED, **SUPERVISED}
    expected = REQUEUED | SUPERVISED | {"TORCHELASTIC_RUN_ID": f"process {os.getppid()}"}
    assert start_variables(environment) == expected and start_variables({}) == {}


@pytest.mark.parametrize("damage", ["", "[1]", "{", "7"])
def test_a_damaged_mark_is_that_of_no_start(tmp_path: Path, damage: str) -> None:
    (tmp_path / "begun.json").write_text(damage)
    assert not is_again(tmp_path, SUPERVISED)


class Killed(Exception):
    """Ends a move in its midst, as a kill does."""


@pytest.mark.parametrize("mode", ["auto", "restart"])
@pytest.mark.parametrize("survived", range(7))
def test_a_move_that_is_killed_is_finished_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int, mode: str
) -> None:
    """Killed after any number of renames, no file of the old run is left beside a new one."""
    old = make_run(tmp_path, "old")
    renames = 0

    def rename(path: Path, target: Any) -> Path:
        nonlocal renames
        if renames == survived:
            raise Killed
        renames += 1
        os.rename(path, target)
        return Path(target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        patched.setattr(Path, "replace", rename)
        try:
            move_aside(tmp_path, SUPERVISED)
            was_killed = False
        except Killed:
            was_killed = True
    assert was_killed == (survived < len(OF_A_RUN) + 2)
    # The next start, supervised or by hand.
    if mode == "auto":
        finish_move(tmp_path)
    else:
        move_aside(tmp_path, SUPERVISED)
    assert files(tmp_path / "earlier-1") == old
    assert not (tmp_path / "earlier-2").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"earlier-1", "begun.json"}


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "old")

    def refuse(path: Path, _: Any) -> Path:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot be moved aside: .*: No space left on device"):
        move_aside(tmp_path, {})


@pytest.mark.parametrize(
    ("setting", "path", "stays"),
    [
        ("model", "export", False),
        ("model", "export/deeper", False),
        ("model", "../elsewhere", True),
        ("model", "data/model", True),
        ("data", "export/pairs.jsonl", False),
        ("data", "pairs.jsonl", True),
    ],
)
def test_a_run_does_not_move_what_it_reads(
    tmp_path: Path, setting: str, path: str, stays: bool
) -> None:
    model = str(tmp_path / path) if setting == "model" else "org/name"
    data = str(tmp_path / path) if setting == "data" else "org/data"
    values = {"model": {"name_or_path": model}, "data": {"format": "pairs", "path": data}}
    config = parse_config(values | {"output_dir": str(tmp_path)}, "test")
    if stays:
        check_inputs_stay(config)
    else:
        name = "model.name_or_path" if setting == "model" else "data.path"
        with pytest.raises(UserError, match=f"{name} .* would move aside; copy it elsewhere"):
            check_inputs_stay(config)


def test_the_mark_is_json(tmp_path: Path) -> None:
    move_aside(tmp_path, SUPERVISED)
    assert json.loads((tmp_path / "begun.json").read_text()) == SUPERVISED
