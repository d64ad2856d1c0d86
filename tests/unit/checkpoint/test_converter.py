"""DeepSpeed's converter, run as a process of its own, if it fails or is killed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cpo_ds.checkpoint.reshard import _run_converter
from cpo_ds.errors import EndedBySignal, UserError


def _convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    _run_converter(tmp_path, tmp_path / "universal" / "step")


def test_a_killed_converter_is_named_and_may_be_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EndedBySignal, match="ended by signal 9, Killed"):
        _convert(tmp_path, monkeypatch, "kill -9 $$")


def test_a_failed_converter_gives_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"could not be converted.*no such optimizer") as raised:
        _convert(tmp_path, monkeypatch, "echo reading; echo no such optimizer; exit 1")
    assert not isinstance(raised.value, EndedBySignal)
