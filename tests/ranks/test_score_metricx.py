"""`cpo-ds prepare score` with MetricX models, on one rank, on two, and split over two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launch
import pytest
from candidate_rows import rows_file
from metricx_models import Oracle, sample_texts, save_metricx
from repository import ROOT
from workers import training

COMET = ROOT / ".venv-comet" / "bin" / "python"


def rows() -> list[dict[str, Any]]:
    texts = sample_texts()
    made = [
        {
            "language_pair": "en-de",
            "source": texts[3 * n],
            "reference": texts[3 * n + 1],
            "candidates": {"a": texts[3 * n + 2], "b": texts[3 * n + 3]},
        }
        for n in range(12)
    ]
    made[0]["source"] = " ".join(texts)[:9000]
    del made[1]["reference"]
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metricx")
    save_metricx(folder / "model")
    rows_file(folder, *rows())
    return folder


def score_options(place: Path, output: str, *options: object) -> list[str]:
    metrics = [f"--metric=metricx-24={place / 'model'}", f"--metric=qe={place / 'model'}:qe"]
    files = ["--input", place / "rows.jsonl", "--output", place / output]
    return ["prepare", "score", *map(str, files), *metrics, *map(str, options)]


def check(place: Path, output: str) -> list[Any]:
    """The scored rows, whose scores must be those of transformers alone."""
    scored = [json.loads(line) for line in (place / output).read_text("utf-8").splitlines()]
    oracle = Oracle(place / "model")
    ours, theirs = [], []
    for row in scored:
        reference = row.get("reference")
        texts = row["candidates"] | ({"reference": reference} if reference else {})
        assert row["scores"]["qe"].keys() == texts.keys()
        assert row["scores"]["metricx-24"].keys() == (texts.keys() if reference else set())
        for name, text in texts.items():
            ours.append(row["scores"]["qe"][name])
            theirs.append(oracle.score(row["source"], text))
            if reference:
                ours.append(row["scores"]["metricx-24"][name])
                theirs.append(oracle.score(row["source"], text, reference))
    assert ours == pytest.approx(theirs, abs=2e-3)  # float32 against float64
    assert len({round(score, 1) for score in theirs}) > 8
    return scored


def test_scores_are_the_formulas_on_one_rank_on_two_and_split(place: Path) -> None:
    printed = {}
    for name, ranks, options in (("one", 1, ()), ("two", 2, ()), ("split", 2, ("--shard",))):
        arguments = score_options(place, f"{name}.jsonl", *options)
        done = launch.on_ranks(training.cpo_ds_command, arguments, ranks=ranks)
        assert [one.code for one in done] == [0] * ranks, done[0].output
        printed[name] = done[0].output
    one, two, split = (check(place, f"{name}.jsonl") for name in printed)
    assert two == one
    assert split == one
    assert "left out, metricx-24: no reference: 2" in printed["one"]
    assert "qe: 3 translations are too long" in printed["one"]
    assert "MetricX cuts them off at 1535 tokens" in printed["one"]
    record = one[0]["scorers"]
    assert record["metricx-24"]["uses_reference"] is True and not record["qe"]["uses_reference"]
    assert record["qe"]["lower_is_better"] is True
    assert record["qe"]["version"].startswith("transformers 5")
    assert record["qe"]["fingerprint"] == record["metricx-24"]["fingerprint"]


@pytest.mark.skipif(not COMET.exists(), reason="no .venv-comet: setup.sh --comet")
def test_comets_environment_gives_the_same_scores(place: Path) -> None:
    """Metrics of one command share an environment, so MetricX beside COMET computes there."""
    arguments = score_options(place, "comet.jsonl")
    command = [str(COMET), "-W", "ignore", "-m", "cpo_ds.cli", *arguments]
    done = launch.finish(launch.start(command, {"PYTHONPATH": str(ROOT)}))
    assert done.code == 0, done.output
    scored = check(place, "comet.jsonl")
    assert scored[0]["scorers"]["qe"]["version"].startswith("transformers 4.57")
