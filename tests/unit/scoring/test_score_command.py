"""`cpo-ds prepare score`: commands that are refused before any rank starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from candidate_rows import ROW, rows_file

from cpo_ds import cli


@pytest.mark.parametrize(
    "options, said",
    [
        (["--hostfile", "/no/hosts"], "--hostfile /no/hosts does not exist"),
        (["--ranks", "999"], "--ranks 999 is too many for this host"),
        (["--ranks", "2", "--hostfile", "/no/hosts"], "--ranks or --hostfile, not both"),
        (["--input", "/no/rows.jsonl"], "--input /no/rows.jsonl does not exist"),
    ],
)
def test_no_rank_is_started_for_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    files = ["--input", str(rows_file(tmp_path, ROW)), "--output", str(tmp_path / "x.jsonl")]
    assert cli.main(["prepare", "score", *files, "--metric", "chrf", *options]) == 2
    assert said in capsys.readouterr().err


def test_where_comets_environment_is_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPO_DS_COMET_PYTHON", str(tmp_path / "python"))
    files = ["--input", str(rows_file(tmp_path, ROW)), "--output", str(tmp_path / "x.jsonl")]
    assert cli.main(["prepare", "score", *files, "--metric", "kiwi"]) == 2
    assert "scripts/setup.sh --comet" in capsys.readouterr().err


def test_a_folder_named_comet_is_not_comet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "comet").mkdir()  # Python would import it as a package without code
    monkeypatch.syspath_prepend(str(tmp_path))
    test_where_comets_environment_is_missing_is_said(tmp_path, capsys, monkeypatch)
