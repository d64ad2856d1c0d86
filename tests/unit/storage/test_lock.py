"""The lock of a run's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cpo_ds.errors import UserError
from cpo_ds.storage.lock import hold_folder


def test_a_lock_ends_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpo_ds.storage.lock._LOCK_SECONDS", 0.0)
    first = hold_folder(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on host"):
        hold_folder(tmp_path)
    first.close()
    hold_folder(tmp_path).close()
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match="lock, which keeps a second run out, cannot be written"):
        hold_folder(tmp_path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_outlives_its_file(
    replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpo_ds.storage.lock._LOCK_SECONDS", 0.0)
    first = hold_folder(tmp_path)
    (tmp_path / "lock").unlink()
    if replaced:
        (tmp_path / "lock").touch()
    with pytest.raises(UserError, match="another run is writing to"):
        hold_folder(tmp_path)
    first.close()
    hold_folder(tmp_path).close()
