"""Metrics that selected a system's training pairs are marked, and are no headline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from candidate_rows import rows_file
from evaluated import evaluate, refused, row

from cpo_ds.cli import main
from cpo_ds.data.selected import named_metrics, with_selecting_metrics
from cpo_ds.evaluate.guard import interferes
from cpo_ds.recipe import parse_config
from cpo_ds.run.folder import write_config
from cpo_ds.scoring.metrics import Metric

BOTH = ("--metric", "chrf", "--metric", "kiwi-22")


def scored_row(number: int, pair: str = "en-de") -> dict[str, Any]:
    """A row with the scores of a neural metric."""
    record = {"model": "Unbabel/wmt22-cometkiwi-da", "dtype": "float32", "version": "x"}
    return row(pair, number) | {
        "scores": {"kiwi-22": {"one": 0.8, "two": 0.7}, "chrf": {"one": 60.0, "two": 50.0}},
        "scorers": {"kiwi-22": record, "chrf": {"model": "chrf"}},
    }


def by_metric(report: dict[str, Any]) -> dict[tuple[str, str], bool]:
    return {(r["metric"], r["system"]): r["interferes"] for r in report["results"]}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A folder of pairs that chrF selected."""
    folder = tmp_path / "selected"
    rows = rows_file(tmp_path, *(scored_row(number) for number in range(4)))
    command = ["prepare", "select", "--input", str(rows), "--output", str(folder)]
    assert main([*command, "--metrics", "chrf"]) == 0
    return folder


def test_chrf_does_not_judge_pairs_that_chrf_selected(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [scored_row(number) for number in range(4)]
    options = [*BOTH, "--metric", "bleu", "--trained-by", f"one={pairs}"]
    report = evaluate(tmp_path, rows, *options)
    assert report["headline"] == ["kiwi-22"] and report["selected_by"] == {"one": ["chrf"]}
    assert by_metric(report) == {
        ("chrf", "one"): True, ("chrf", "two"): False, ("bleu", "one"): True,
        ("bleu", "two"): False, ("kiwi-22", "one"): False, ("kiwi-22", "two"): False,
    }  # fmt: skip
    printed = capsys.readouterr()
    headline = printed.out.split("\n\n")[0]
    assert "kiwi-22" in headline and "chrf" not in headline and "bleu" not in headline
    assert "chrf (!)" in printed.out and "kiwi-22 x 100 (!)" not in printed.out
    assert "one: chrf selected its training pairs or its translations" in printed.err
    assert "not in the headline: chrf, bleu" in printed.err
    assert "no lexical metric is unrelated to the pairs" in printed.err

    # A difference by a marked metric has no delta accuracy.
    tested = evaluate(tmp_path, rows, *options, "--paired-ar", "--paired-ar-n", "100")
    shares = {c["metric"]: c["agreement"] for c in tested["significance"]}
    assert shares == {"chrf": None, "bleu": None, "kiwi-22": "above 95%"}
    assert "chrf (!): differences from one" in capsys.readouterr().out

    # Without the option nothing is marked.
    report = evaluate(tmp_path, rows, *BOTH)
    assert report["headline"] == ["chrf", "kiwi-22"] and not any(by_metric(report).values())


def test_without_a_metric_that_may_be_believed_there_is_no_headline(
    tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(tmp_path, [row()], "--metric", "chrf", "--trained-by", str(pairs))
    assert report["headline"] == [] and all(by_metric(report).values())
    printed = capsys.readouterr()
    assert "Headline" not in printed.out and "there is no headline" in printed.err
    assert "no unrelated neural metric is shown: add one, like --metric metricx-24" in printed.err


def test_relatives_of_comet_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [scored_row(number) for number in range(2)]
    report = evaluate(tmp_path, rows, *BOTH, "--selected-by", "one=kiwi+xcomet")
    assert report["headline"] == ["chrf"]
    assert by_metric(report)["kiwi-22", "one"] and not by_metric(report)["kiwi-22", "two"]
    said = capsys.readouterr().err
    assert "add one, like --metric metricx-24" in said and "no lexical" not in said
    evaluate(tmp_path, rows, "--metric", "kiwi-22", "--selected-by", "one=kiwi")
    assert "no lexical metric is shown: add --metric chrf" in capsys.readouterr().err


def test_a_metric_of_another_name_is_known_by_its_model(tmp_path: Path) -> None:
    values = scored_row(0)
    for field in ("scores", "scorers"):
        values[field]["mine"] = values[field].pop("kiwi-22")
    report = evaluate(tmp_path, [values], "--metric", "mine", "--selected-by", "one=xcomet")
    assert report["headline"] == []


@pytest.mark.parametrize(
    ("metric", "selected", "expected"),
    [
        ("bleu", "chrf", True),
        ("chrf", "Unbabel/XCOMET-XXL", False),
        ("comet-22", "Unbabel/wmt23-cometkiwi-da-xxl", True),
        ("own=XCOMET-XL", "kiwi", True),
        ("metricx-24", "xcomet", False),
        ("metricx-24", "google/metricx-24-hybrid-xl-v2p6", True),
        ("a-model", "a-model", True),
        ("a-model", "another-model", False),
    ],
)
def test_families(metric: str, selected: str, expected: bool) -> None:
    assert interferes(Metric(metric, metric), [selected]) is expected


def test_a_run_passes_the_name_on(tmp_path: Path, pairs: Path) -> None:
    """The configuration that a run writes holds the metrics that its pairs name."""
    recipe = {
        "model": {"name_or_path": "m"},
        "data": {"format": "pairs", "path": str(pairs / "pairs.jsonl")},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run").mkdir()
    rows = map(json.loads, (pairs / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    config = parse_config(recipe, "the test")
    config = with_selecting_metrics(config, named_metrics(config.data, rows))
    write_config(config, tmp_path / "run", world_size=1)
    options = ["--metric", "chrf", "--trained-by", f"one={tmp_path / 'run'}"]
    report = evaluate(tmp_path, [row()], *options)
    assert report["selected_by"] == {"one": ["chrf"]} and report["headline"] == []


def export(folder: Path, **front_matter: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = f"---\n{yaml.safe_dump({'base_model': 'm'} | front_matter)}---\n# A model\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def run_folder(folder: Path, **data: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = yaml.safe_dump({"data": {"path": "p"} | data}) + "# ranks: 1\n"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return folder


def test_runs_and_exports_tell_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (
        export(tmp_path / "export", selected_by=["chrf"]),
        run_folder(tmp_path / "run", selected_by=["chrf"]),
    ):
        report = evaluate(tmp_path, [row()], "--metric", "chrf", "--trained-by", f"two={folder}")
        assert report["selected_by"] == {"two": ["chrf"]} and report["headline"] == []
    for folder in (export(tmp_path / "export"), run_folder(tmp_path / "run")):
        report = evaluate(tmp_path, [row()], "--metric", "chrf", "--trained-by", f"two={folder}")
        assert report["headline"] == ["chrf"]
        assert f"{folder} does not say which metrics selected its pairs" in report["notes"][0]


def test_settings_beside_the_rows_tell_too(tmp_path: Path) -> None:
    beside = tmp_path / "rows.jsonl.settings.json"
    adapter = export(tmp_path / "export", selected_by=["kiwi"])
    settings = {"system": "one", "model": "OWNER/NAME", "adapter": str(adapter), "rerank": None}
    for values, expected in (
        (settings, {"one": ["kiwi"]}),
        (settings | {"rerank": "mbr"}, {"one": ["chrf", "kiwi"]}),
        (settings | {"adapter": None, "rerank": "comet-22"}, {"one": ["comet-22"]}),
        (settings | {"adapter": None}, {}),
        (settings | {"system": "another"}, {}),
        ({"system": "one", "model": str(tmp_path)}, {}),
        ([], {}),
    ):
        beside.write_text(json.dumps(values), encoding="utf-8")
        assert evaluate(tmp_path, [row()], "--metric", "chrf")["selected_by"] == expected


def test_pairs_that_a_person_chose_mark_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "p", "selected_by": []}) + "\n", encoding="utf-8")
    report = evaluate(tmp_path, [row()], "--metric", "chrf", "--trained-by", str(file))
    assert report["headline"] == ["chrf"] and report["notes"] == []


def test_wrong_folders_and_systems_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--input", str(rows_file(tmp_path, row())), "--metric", "chrf"]
    (tmp_path / "empty").mkdir()
    for given, message in (
        (f"one={tmp_path / 'no'}", "does not exist"),
        (f"onne={tmp_path}", "no system onne in the rows (did you mean one?)"),
        (str(tmp_path / "empty"), "neither a run"),
    ):
        assert message in refused(capsys, *start, "--trained-by", given)
    damaged = export(tmp_path / "damaged")
    (damaged / "README.md").write_text("---\n{\n---\n", encoding="utf-8")
    assert "cannot be read" in refused(capsys, *start, "--trained-by", str(damaged))
    assert "no system onne" in refused(capsys, *start, "--selected-by", "onne=chrf")
