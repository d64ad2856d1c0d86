"""Files appear whole or not at all."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cpo_ds.errors import UserError
from cpo_ds.storage import files
from cpo_ds.storage.files import replacing, writing


def test_a_new_file_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for text in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with replacing(path) as unfinished:
            unfinished.write_text(text)
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["file"]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as unfinished:
        unfinished.write_text("half of the n")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == ["file"] and path.read_text() == "old"


@pytest.mark.parametrize("name", ["file/inside", "folder"])
def test_places_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    """A path below a file, and the path of a folder that is not empty."""
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    path = tmp_path / name
    problem = f"{path} cannot be written: .*; make room"
    with pytest.raises(UserError, match=problem), writing(path) as unfinished:
        unfinished.write_text("text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_sync_that_is_under_way_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow_sync(descriptor: int) -> None:
        begun.set()
        assert may_end.wait(60)

    monkeypatch.setattr(os, "fsync", slow_sync)
    assert files.sync_seconds() is None
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(files.sync, tmp_path)
        assert begun.wait(60)
        before = files.sync_seconds()
        assert before is not None and (files.sync_seconds() or 0) >= before
        may_end.set()
        waiting.result()
    assert files.sync_seconds() is None
