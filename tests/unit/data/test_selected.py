"""The metrics that selected pairs travel from the rows of scores into a run's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpo_ds.data.selected import metric_name, with_selecting_metrics
from cpo_ds.recipe import parse_config


def selected(folder: Path, rows: list[Any], data: dict[str, Any]) -> list[str] | None:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": {"name_or_path": "m"},
        "data": {"path": str(path), "format": "pairs"} | data,
        "output_dir": "runs/x",
    }
    return with_selecting_metrics(parse_config(recipe, "the test")).data.selected_by


def pair(*metrics: str) -> dict[str, Any]:
    return {"prompt": "p", "chosen": "c", "rejected": "r", "selected_by": list(metrics)}


def test_pairs_name_their_metrics(tmp_path: Path) -> None:
    plain = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert selected(tmp_path, [plain], {}) is None
    assert selected(tmp_path, [pair()], {}) == []
    assert selected(tmp_path, [plain, pair("chrf"), pair("a", "chrf")], {}) == ["chrf", "a"]
    assert selected(tmp_path, [pair("a")], {"selected_by": ["b"]}) == ["b", "a"]
    assert selected(tmp_path, [plain], {"selected_by": ["b"]}) == ["b"]


def test_the_scorer_is_the_metric_in_other_formats(tmp_path: Path) -> None:
    alma_r = {"format": "alma-r", "path": "haoranxu/ALMA-R-Preference"}
    assert selected(tmp_path, [], alma_r) == ["kiwi", "xcomet"]
    assert selected(tmp_path, [], alma_r | {"scorer": "xcomet"}) == ["xcomet"]
    row = {"scores": {"a": {}, "b": {}}, "scorers": {"a": {"model": "OWNER/A"}}}
    assert selected(tmp_path, [row], {"format": "triplets", "scorer": "a+b"}) == ["OWNER/A", "b"]
    assert selected(tmp_path, [row], {"format": "triplets"}) == ["kiwi", "xcomet"]
    stored = {"scores": {"kiwi_xcomet": {}}}
    assert selected(tmp_path, [stored], {"format": "triplets"}) == ["kiwi", "xcomet"]


def test_data_that_cannot_be_read_is_left_to_those_who_read_it(tmp_path: Path) -> None:
    assert selected(tmp_path, [], {"path": str(tmp_path / "no.jsonl")}) is None


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Unbabel/XCOMET-XXL", "Unbabel/XCOMET-XXL"),
        ("/models/XCOMET-XL/checkpoints/model.ckpt", "m=XCOMET-XL"),
        (None, "m"),
    ],
)
def test_names_keep_no_path(model: str | None, name: str) -> None:
    assert metric_name("m", {"m": {"model": model}}) == name
    assert metric_name("chrf", {"chrf": {"model": "chrf"}}) == "chrf"
