"""The report of a run: before and after, and a picture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from finished_run import write_run

from cpo_ds.report import command as report


def test_it_prints_before_and_after_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "reward accuracy         0.2500 -> 0.7500" in printed
    assert "reward margin           0.1250 -> 0.3750" in printed
    assert re.search(r"en-de \(4\) +0\.250 -> 0\.750", printed)
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "there is no" in capsys.readouterr().err
