"""Commands that read the checkpoints of a run that saves and prunes meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from test_publish import save

from cpo_ds.checkpoint import inventory
from cpo_ds.checkpoint.inventory import find_intact, list_checkpoints
from cpo_ds.checkpoint.manifest import damage
from cpo_ds.checkpoint.publish import Hold, checkpoint_name, prune
from cpo_ds.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (1, 2):
        save(tmp_path / "checkpoints", step, keep_last=1)
    return tmp_path / "checkpoints"


def silent(text: str) -> None:
    raise AssertionError(text)


def test_a_checkpoint_that_is_read_is_pruned_later(folder: Path) -> None:
    path, manifest, hold = find_intact(folder.parent, None, silent)
    save(folder, 3, keep_last=1)
    save(folder, 4, keep_last=1)
    assert path.name == checkpoint_name(2) and damage(path, manifest) == []
    hold.close()
    prune(folder, checkpoint_name(4), keep_last=1)
    assert not path.exists()


def test_a_forgotten_hold_ends(folder: Path) -> None:
    path, _, hold = find_intact(folder.parent, None, silent)
    del hold
    save(folder, 3, keep_last=1)
    assert not path.exists()


def test_a_hold_on_another_checkpoint_of_the_same_name_is_none(folder: Path) -> None:
    path = folder / checkpoint_name(2)
    with pytest.raises(FileNotFoundError):
        Hold(folder / checkpoint_name(1))
    hold = Hold(path)
    hold.close()
    hold.close()


@pytest.mark.parametrize("has_locks", [True, False])
def test_readers_in_a_loop_beside_a_saving_run(
    folder: Path, has_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_locks:

        def flock(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("fcntl.flock", flock)
    over = threading.Event()

    def run() -> None:
        step = 3
        while not over.is_set():
            save(folder, step, keep_last=1)
            step += 1

    saving = threading.Thread(target=run)
    saving.start()
    try:
        for _ in range(150):
            try:
                find_intact(folder.parent, None, silent)
            except UserError as error:
                assert not has_locks and "were removed while they were looked at" in str(error)
            table, all_intact = list_checkpoints(folder.parent)
            assert all_intact and "damaged" not in table
    finally:
        over.set()
        saving.join()


def test_without_locks_a_checkpoint_pruned_while_it_is_read_is_not_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inventory.inspect

    def pruned_meanwhile(path: Path) -> object:
        save(folder, 3, keep_last=1)
        return real(path)

    monkeypatch.setattr(inventory, "inspect", pruned_meanwhile)
    assert "intact" in list_checkpoints(folder.parent)[0]
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    (folder / "latest").unlink()
    table, all_intact = list_checkpoints(folder.parent)
    assert all_intact and "removed meanwhile" in table
