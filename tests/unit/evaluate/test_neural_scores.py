"""Neural metrics whose scores the rows hold already, as `prepare score` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from candidate_rows import rows_file
from evaluated import evaluate, refused, row, scores

from cpo_ds.cli import main
from cpo_ds.evaluate.neural import models_in_rows, name_in_rows
from cpo_ds.evaluate.rows import read_directions
from cpo_ds.evaluate.signature import parse_signature
from cpo_ds.scoring.metrics import Metric

KIWI = {"model": "Unbabel/wmt22-cometkiwi-da", "fingerprint": "f", "dtype": "float32"}
KIWI |= {"uses_reference": False, "version": "unbabel-comet 2.2.7"}


def scored(number: int, name: str = "kiwi-22", **record: Any) -> dict[str, Any]:
    values = {"one": 0.5 + number / 10, "two": 0.4, "reference": 0.9}
    return row(number=number) | {"scores": {name: values}, "scorers": {name: KIWI | record}}


def test_scores_of_the_rows_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [scored(number) for number in range(3)]
    report = evaluate(tmp_path, rows, "--metric", "kiwi-22")
    assert scores(report)["kiwi-22", "one", "en-de"] == pytest.approx(0.6)
    name, settings = parse_signature(report["results"][0]["signature"])
    assert name == "kiwi-22" and settings["model"] == "Unbabel/wmt22-cometkiwi-da"
    assert settings["dtype"] == "float32" and settings["nrefs"] == "0" and "ref" not in settings
    assert settings["version"] == "unbabel-comet 2.2.7" and settings["fingerprint"] == "f"
    assert "60.00*" in capsys.readouterr().out  # tables show them times 100
    assert main(["evaluate", "--verify", str(tmp_path / "out.json")]) == 0


def test_an_empty_translation_scores_zero(tmp_path: Path) -> None:
    rows = [scored(number) for number in range(3)]
    rows[0]["candidates"]["one"] = ""
    report = evaluate(tmp_path, rows, "--metric", "kiwi-22")
    assert scores(report)["kiwi-22", "one", "en-de"] == pytest.approx((0 + 0.6 + 0.7) / 3)
    assert "|empty:1|" in report["results"][0]["signature"]


def test_the_worst_of_metricx_is_its_highest(tmp_path: Path) -> None:
    rows = [scored(number, "metricx-24", model="google/metricx-24") for number in range(2)]
    rows[0]["candidates"]["two"] = " "
    report = evaluate(tmp_path, rows, "--metric", "metricx-24")
    assert scores(report)["metricx-24", "two", "en-de"] == pytest.approx((25 + 0.4) / 2)


def test_other_names_of_a_metric(tmp_path: Path) -> None:
    rows = [scored(number, "wmt22-cometkiwi-da") for number in range(2)]
    assert evaluate(tmp_path, rows, "--metric", "kiwi-22")["results"][0]["score"] == 0.55
    own = [scored(number, "my-own", model="my-own") for number in range(2)]
    assert evaluate(tmp_path, own, "--metric", "my-own")["results"][0]["score"] == 0.55


def test_scores_of_another_model_are_not_taken(tmp_path: Path) -> None:
    rows = rows_file(tmp_path, *(scored(number, model="/a/model") for number in range(2)))
    (direction,) = read_directions(str(rows))
    models = models_in_rows(direction.rows)
    for model, name in (("/a/model", "kiwi-22"), (KIWI["model"], "kiwi-22"), ("/b", None)):
        assert name_in_rows(Metric("kiwi-22", str(model)), models) == name


@pytest.mark.parametrize("field", ["scores", "scorers"])
def test_fields_of_another_shape_are_no_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    start = ["--input", str(rows_file(tmp_path, scored(0) | {field: 5})), "--metric", "own"]
    assert "there is no metric 'own'" in refused(capsys, *start)


def test_precisions_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [scored(0), scored(1, dtype="bfloat16")]
    start = ["--input", str(rows_file(tmp_path, *rows)), "--metric", "kiwi-22"]
    said = refused(capsys, *start)
    assert "more than one kind" in said and "dtype: bfloat16 and float32" in said
    both = scored(0)
    both["scores"]["comet-22"] = both["scores"]["kiwi-22"]
    both["scorers"]["comet-22"] = KIWI | {"model": "Unbabel/wmt22-comet-da", "dtype": "bfloat16"}
    rows_file(tmp_path, both)
    said = refused(capsys, *start, "--metric", "comet-22")
    assert "different precisions (kiwi-22 float32, comet-22 bfloat16)" in said


def test_missing_scores_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [scored(0), scored(1)]
    del rows[1]["scores"]["kiwi-22"]["two"]
    start = ["--input", str(rows_file(tmp_path, *rows)), "--metric", "kiwi-22"]
    assert "line 2: there is no score by kiwi-22 of two" in refused(capsys, *start)


def test_a_changed_score_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [scored(number) for number in range(3)]
    evaluate(tmp_path, rows, "--metric", "kiwi-22")
    rows[0]["scores"]["kiwi-22"]["one"] = 0.9
    rows[1]["scorers"]["kiwi-22"]["fingerprint"] = "g"
    rows_file(tmp_path, *rows)
    assert "more than one kind" in refused(capsys, "--verify", str(tmp_path / "out.json"))
    rows[1]["scorers"]["kiwi-22"]["fingerprint"] = "f"
    rows_file(tmp_path, *rows)
    capsys.readouterr()
    assert main(["evaluate", "--verify", str(tmp_path / "out.json")]) == 2
    said = capsys.readouterr().err
    assert "kiwi-22 of one, en-de: the score is 0.6" in said and "of two" not in said


def test_the_message_of_the_scoring_process_is_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is missing is the user's to bring; so is COMET's environment."""
    monkeypatch.setenv("CPO_DS_COMET_PYTHON", str(tmp_path / "none"))
    start = ["--input", str(rows_file(tmp_path, row())), "--metric", "x=no/model.ckpt"]
    assert "COMET's environment is missing" in refused(capsys, *start)
