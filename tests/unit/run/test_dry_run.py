"""A dry run checks everything that needs no model, shows it, and leaves no file."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers import save_tiny_model
from preference_data import write

from cpo_ds.errors import UserError
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.row_shape import RowShape
from cpo_ds.ranks.place import Place
from cpo_ds.recipe import parse_config
from cpo_ds.run.dry_run import check_folder, dry_run, folder_line

ROWS = [
    {"prompt": f"Say {n}:", "chosen": f" {n}!", "rejected": f" {n}?", "direction": "en-de"}
    for n in range(9)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("dry") / "model")


def config_of(base: Path, folder: Path, **sections: dict[str, Any]) -> Any:
    long = ROWS[0] | {"prompt": "Say " * 500}
    values: dict[str, Any] = {
        "model": {"name_or_path": str(base), "dtype": "float32"},
        "data": {"format": "pairs", "path": str(write(folder / "p.jsonl", [*ROWS, long]))},
        "batch": {"pairs": 4, "tokens_per_rank": 1024},
        "train": {"epochs": 2},
        "deepspeed": "zero2",
        "output_dir": str(folder / "out"),
    }
    for name, settings in sections.items():
        values[name] = {**values.get(name, {}), **settings}
    return parse_config(values, "test")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_everything_is_shown_and_nothing_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    config = config_of(model, tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = files(tmp_path)
    dry_run(config, Place("none", world_size=2, local_world_size=2))
    assert files(tmp_path) == before
    printed = capsys.readouterr().out
    assert "training pairs: 9\n  dropped: 1 (prompt longer than 256 tokens" in printed
    assert f"training pair 1 of 9, {tmp_path}/p.jsonl:1, en-de: " in printed
    assert "training pair 2 of 9" in printed and "    chosen     0!</s>" in printed
    assert "steps: 6, 2 epoch(s) of 3 steps of 4 pairs\n" in printed
    assert "memory: 2 GPU(s) would need about " in printed
    assert f"output_dir: {tmp_path}/out; the run would begin anew\n" in printed
    assert printed.endswith("Without --dry-run this run starts.\n") and "\033" not in printed


def test_lists_of_rejected_texts_are_counted_and_planned(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    rows = [row | {"rejected": [row["rejected"], " no", " so", "?"]} for row in ROWS]
    config = config_of(model, tmp_path, data={"path": str(write(tmp_path / "many.jsonl", rows))})
    planned: list[RowShape] = []

    def outlines(shape: None, rows: RowShape, **options: Any) -> Outlines:
        planned.append(rows)
        return Outlines(shape, rows, **options)

    monkeypatch.setattr("cpo_ds.run.dry_run.Outlines", outlines)
    dry_run(config, Place("none"))
    printed = capsys.readouterr().out
    assert "training pairs: 9\n" in printed
    assert "  rejected completions of these pairs: 36\n" in printed
    first = printed.partition("training pair 1 of 9")[2].partition("  tokens")[0]
    assert [line.split()[0] for line in first.splitlines()[2:] if line] == [
        "prompt", "chosen", *("rejected",) * 4,
    ]  # fmt: skip
    assert [rows.rejected for rows in planned] == [4]


# A part that is wrong -> the message, that of a run.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": {"directions": ["zh-en"]}}, "zh-en"),
    "model": ({"model": {"name_or_path": "/no/model"}}, "/no/model"),
    "DeepSpeed file": ({"model": {"dtype": "float16"}}, "model.dtype is float16, in which"),
    "adapter": ({"lora": {"target_modules": ["no_proj"]}}, "no_proj"),
    "long pairs": ({"batch": {"tokens_per_rank": 8}, "data": {"max_tokens": 8}}, "8"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_part_is_refused_as_by_a_run(wrong: str, model: Path, tmp_path: Path) -> None:
    sections, message = WRONG[wrong]
    with pytest.raises(UserError, match=message):
        dry_run(config_of(model, tmp_path, **sections), Place("none"))
    assert not (tmp_path / "out").exists()


def test_the_output_folder_is_looked_at_alone(model: Path, tmp_path: Path) -> None:
    config = config_of(model, tmp_path)
    (tmp_path / "out" / "checkpoints" / "step-00000003").mkdir(parents=True)
    before = files(tmp_path)
    assert folder_line(config, 9).endswith("the run would go on from step-00000003")
    again = config_of(model, tmp_path, checkpoint={"resume": "restart"})
    assert folder_line(again, 9).endswith("the earlier run in it would be moved aside")
    check_folder(config)
    assert files(tmp_path) == before
    (tmp_path / "out" / "export").mkdir()
    (tmp_path / "out" / "finished.json").write_text('{"step": 3}')
    assert "is finished, so that nothing would be trained" in folder_line(config, 3)
    assert "would go on" in folder_line(config, 9)

    below_file = config.model_copy(update={"output_dir": str(tmp_path / "p.jsonl" / "out")})
    with pytest.raises(UserError, match=r"p\.jsonl: it is no folder; mend"):
        check_folder(below_file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    config = config_of(model, tmp_path)
    closed = config.model_copy(update={"output_dir": str(tmp_path / "closed" / "out")})
    with pytest.raises(UserError, match="no permission to write"):
        check_folder(closed)


def test_a_tracker_that_is_not_installed_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    config = config_of(model, tmp_path, logging={"trackers": ["trackio"]})
    with pytest.raises(UserError, match="trackers names trackio"):
        dry_run(config, Place("none"))
