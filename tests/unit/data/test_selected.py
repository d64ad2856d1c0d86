"""The metrics that selected pairs travel from the rows of scores into a run's configuration."""

from __future__ import annotations

from typing import Any

import pytest

from cpo_ds.data.selected import metric_name, named_metrics, with_selecting_metrics
from cpo_ds.recipe import parse_config


def selected(rows: list[Any], data: dict[str, Any]) -> list[str] | None:
    recipe = {
        "model": {"name_or_path": "m"},
        "data": {"path": "rows.jsonl", "format": "pairs"} | data,
        "output_dir": "runs/x",
    }
    config = parse_config(recipe, "the test")
    return with_selecting_metrics(config, named_metrics(config.data, rows)).data.selected_by


def pair(*metrics: str) -> dict[str, Any]:
    return {"prompt": "p", "chosen": "c", "rejected": "r", "selected_by": list(metrics)}


def test_pairs_name_their_metrics() -> None:
    plain = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert selected([plain], {}) is None
    assert selected([pair()], {}) == []
    assert selected([plain, pair("chrf"), pair("a", "chrf")], {}) == ["chrf", "a"]
    assert selected([pair("a")], {"selected_by": ["b"]}) == ["b", "a"]
    assert selected([plain], {"selected_by": ["b"]}) == ["b"]


def test_the_scorer_is_the_metric_in_other_formats() -> None:
    alma_r = {"format": "alma-r", "path": "haoranxu/ALMA-R-Preference"}
    assert selected([], alma_r) == ["kiwi", "xcomet"]
    assert selected([], alma_r | {"scorer": "xcomet"}) == ["xcomet"]
    row = {"scores": {"a": {}, "b": {}}, "scorers": {"a": {"model": "OWNER/A"}}}
    assert selected([row], {"format": "triplets", "scorer": "a+b"}) == ["OWNER/A", "b"]
    assert selected([row], {"format": "triplets"}) == ["kiwi", "xcomet"]
    stored = {"scores": {"kiwi_xcomet": {}}}
    assert selected([stored], {"format": "triplets"}) == ["kiwi", "xcomet"]


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
