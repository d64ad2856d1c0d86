"""The folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ds.errors import UserError
from cpo_ds.run.folder import make_output_folder


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot be written: .*; make room"):
            make_output_folder(folder)
    assert (tmp_path / "file").read_text() == "not a folder"
