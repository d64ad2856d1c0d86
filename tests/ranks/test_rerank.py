"""`cpo-ds translate --rerank METRIC`: a COMET model of its own environment chooses a sample."""

from __future__ import annotations

import json
from pathlib import Path

import launch
import pytest
from repository import ROOT
from translation_runs import ending_model, rows_of, translate_rows, write_json_rows

from cpo_ds.errors import UserError
from cpo_ds.translate.lines import read_sources
from cpo_ds.translate.rerank import choose_by_metric

COMET = ROOT / ".venv-comet" / "bin" / "python"
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
ROWS = [{"language_pair": "en-de", "source": text, "reference": "x"} for text in ("the", "a sea")]


@pytest.mark.skipif(not COMET.exists(), reason="no .venv-comet: setup.sh --comet")
def test_the_sample_with_the_highest_score_is_kept(tmp_path: Path) -> None:
    code = "import sys; from models.comet_models import make_models; make_models(*sys.argv[1:])"
    arguments = [str(tmp_path / "comet-models"), json.dumps(SIZES), "kiwi"]
    command = [str(COMET), "-W", "ignore", "-c", code, *arguments]
    done = launch.finish(launch.start(command, {"PYTHONPATH": str(ROOT / "benchmarks")}))
    assert done.code == 0, done.output
    model, metric = ending_model(tmp_path / "tiny"), tmp_path / "comet-models" / "kiwi"
    source = write_json_rows(tmp_path / "rows.jsonl", ROWS)
    options = ("--model", model, "--input", source, "--name", "s", "--max-new-tokens", "12")
    options += ("--samples", "4", "--temperature", "2")
    every, best = tmp_path / "every.jsonl", tmp_path / "best.jsonl"
    (run,) = translate_rows(*options, "--output", every)
    assert run.code == 0, run.output
    (run,) = translate_rows(*options, "--output", best, "--rerank", metric)
    assert run.code == 0, run.output
    scored = tmp_path / "scored.jsonl"
    scoring = [str(Path(launch.ENVIRONMENT["PATH"].split(":")[0]) / "cpo-ds"), "prepare", "score"]
    scoring += ["--input", str(every), "--output", str(scored), "--metric", f"k={metric}"]
    done = launch.finish(launch.start(scoring))
    assert done.code == 0, done.output
    for kept, row in zip(rows_of(best), rows_of(scored), strict=True):
        scores = {name: score for name, score in row["scores"]["k"].items() if name != "reference"}
        assert len(set(scores.values())) > 1
        chosen = row["candidates"][max(scores, key=scores.__getitem__)]
        assert kept == {**kept, "candidates": {"s": chosen}} and "scores" not in kept
    settings = json.loads(Path(f"{best}.settings.json").read_text())
    assert settings["rerank"] == str(metric) and settings["protocol"] == "other"


def test_a_metric_that_needs_a_reference_cannot_choose(tmp_path: Path) -> None:
    """The rows have one, but the metric does not get to see it."""
    rows = read_sources(write_json_rows(tmp_path / "rows.jsonl", ROWS), None, None).rows
    with pytest.raises(UserError, match="the metric chrf could not score the samples"):
        choose_by_metric(rows, [["a", "b"], ["", "c"]], "chrf", tmp_path / "cache", [])
