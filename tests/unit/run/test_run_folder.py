"""The folder of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.run.folder import (
    is_described,
    is_finished,
    is_measured,
    make_output_folder,
    mark_finished_again,
    write_config,
    write_finished,
)


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot be written: .*; make room"):
            make_output_folder(folder)
    assert (tmp_path / "file").read_text() == "not a folder"


# The mark of a finished run.


def config_of(folder: Path, *, export: bool) -> Config:
    values = {"model": {"name_or_path": "m"}, "data": {"format": "sample"}}
    return parse_config(
        values | {"output_dir": str(folder), "checkpoint": {"export": export}}, "test"
    )


@pytest.mark.parametrize(
    ("mark", "has_export", "wants_export", "finished"),
    [
        ({"step": 8, "exported": True}, True, True, True),
        ({"step": 8, "exported": True}, True, False, True),
        ({"step": 8, "exported": True}, False, True, False),
        ({"step": 8, "exported": False}, False, True, False),
        ({"step": 8, "exported": False}, False, False, True),
        ({"step": 8, "exported": False}, True, True, False),  # the export is of an earlier step
        ({"step": 8}, True, True, True),  # of an older version
        ({"step": 7, "exported": True}, True, True, False),
        ({"step": "8"}, True, True, False),
        ([], True, True, False),
        (None, True, False, False),
    ],
)
def test_a_run_is_finished_when_nothing_is_left(
    tmp_path: Path, mark: object, has_export: bool, wants_export: bool, finished: bool
) -> None:
    if mark is not None:
        (tmp_path / "finished.json").write_text(json.dumps(mark))
    if has_export:
        (tmp_path / "export").mkdir()
    assert is_finished(config_of(tmp_path, export=wants_export), 8) == finished


def test_the_mark_is_rewritten_for_a_supervised_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "finished.json"
    monkeypatch.delenv("PYTHON_CPO_DS_RUN", raising=False)
    write_finished(tmp_path, 8, exported=True)
    before = (mark.read_bytes(), mark.stat().st_mtime_ns)
    mark_finished_again(tmp_path, 8)
    assert (mark.read_bytes(), mark.stat().st_mtime_ns) == before
    monkeypatch.setenv("PYTHON_CPO_DS_RUN", "host-1-2")
    mark_finished_again(tmp_path, 8)
    assert json.loads(mark.read_text()) == {"step": 8, "start": "host-1-2", "exported": True}
    mark.unlink()
    mark_finished_again(tmp_path, 8)
    assert json.loads(mark.read_text())["exported"] is False


@pytest.mark.parametrize(
    ("lines", "measured", "measured_and_evaluated"),
    [
        ([{"step": 1, "loss": 1}, {"step": 2, "loss": 1}], True, False),
        ([{"step": 2, "loss": 1}, {"step": 2, "eval_loss": 1}], True, True),
        ([{"step": 1, "loss": 1}, {"step": 1, "eval_loss": 1}], False, False),
        ([{"step": 2, "loss": 1}, {"step": 1, "eval_loss": 1}], True, False),
        ([], False, False),
        (None, False, False),
    ],
)
def test_metrics_of_the_last_step(
    tmp_path: Path, lines: list | None, measured: bool, measured_and_evaluated: bool
) -> None:
    if lines is not None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text + '{"step": 2, "eval')  # half a line
    assert is_measured(tmp_path, 2, evaluates=False) == measured
    assert is_measured(tmp_path, 2, evaluates=True) == measured_and_evaluated


def test_a_configuration_that_describes_a_checkpoint(tmp_path: Path) -> None:
    config = config_of(tmp_path, export=True)
    manifest = Manifest(1, 1, 0, configuration=config.model_dump(mode="json"))
    assert not is_described(tmp_path, manifest)
    write_config(config, tmp_path, 1)
    assert is_described(tmp_path, manifest)
    write_config(config.model_copy(update={"output_dir": "other"}), tmp_path, 1)
    assert not is_described(tmp_path, manifest)
    (tmp_path / "config.yaml").write_text("a: [")
    assert not is_described(tmp_path, manifest)
