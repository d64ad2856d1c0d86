"""`cpo-ds evaluate` with COMET models of the real architecture, in COMET's environment."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import launch
import pytest
from candidate_rows import rows_file
from evaluated import row, scores
from repository import ROOT

COMET = ROOT / ".venv-comet" / "bin" / "python"
pytestmark = pytest.mark.skipif(not COMET.exists(), reason="no .venv-comet: setup.sh --comet")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
KINDS = ("kiwi", "comet")


def evaluate(*options: object) -> launch.Finished:
    program = Path(launch.ENVIRONMENT["PATH"].split(":")[0]) / "cpo-ds"
    return launch.finish(launch.start([str(program), "evaluate", *map(str, options)]))


def rows_to_score() -> list[dict[str, Any]]:
    rows = [row(pair, number) for pair in ("en-de", "de-en") for number in range(4)]
    rows[0]["candidates"]["two"] = ""
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models, rows, and the scores of COMET's own `predict`."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows_file(folder, *rows_to_score())
    code = (
        "import sys; from models import comet_models as c; "
        "f, s, *k = sys.argv[1:]; c.make_models(f, s, *k); "
        "c.predict(f, f + '/rows.jsonl', f + '/predicted.json', 'kiwi', 'comet+')"
    )
    command = [str(COMET), "-W", "ignore", "-c", code, str(folder), json.dumps(SIZES), *KINDS]
    done = launch.finish(launch.start(command, {"PYTHONPATH": str(ROOT / "benchmarks")}))
    assert done.code == 0, done.output
    return folder


def test_means_are_those_of_comets_own_scores(place: Path) -> None:
    metrics = [text for kind in KINDS for text in ("--metric", f"{kind}={place / kind}")]
    files = ("--input", place / "rows.jsonl", "--json", place / "out.json")
    done = evaluate(*files, *metrics, "--metric", "chrf", "--paired-bs")
    assert done.code == 0, done.output
    report = json.loads((place / "out.json").read_text(encoding="utf-8"))
    made = scores(report)

    # COMET's own scores of each row's reference, first system and second system, in this order.
    predicted = json.loads((place / "predicted.json").read_text())
    rows = rows_to_score()
    for kind, theirs in (("kiwi", "kiwi"), ("comet", "comet+")):
        values = iter(predicted[theirs]["scores"])
        expected: dict[tuple[str, str], list[float]] = {}
        for values_of_row in rows:
            for name in ("reference", "one", "two"):
                score = next(values)
                text = values_of_row["candidates"].get(name, "x")
                key = (name, values_of_row["language_pair"])
                expected.setdefault(key, []).append(score if text else 0.0)
        for (name, pair), of_pair in expected.items():
            if name != "reference":
                assert made[kind, name, pair] == pytest.approx(statistics.fmean(of_pair), abs=1e-5)
    signature = next(r["signature"] for r in report["results"] if r["metric"] == "comet")
    assert "|dtype:float32|nrefs:1|empty:0|" in signature and "|version:unbabel-comet " in signature
    assert {c["metric"] for c in report["significance"]} == {*KINDS, "chrf"}

    # The file is verified, from kept scores; a changed number is found out.
    done = evaluate("--verify", place / "out.json", "--cache", place / "out.json.cache")
    assert done.code == 0 and "are equal" in done.output, done.output
    report["results"][0]["score"] += 0.001
    (place / "out.json").write_text(json.dumps(report), encoding="utf-8")
    done = evaluate("--verify", place / "out.json", "--cache", place / "out.json.cache")
    assert done.code == 2 and "kiwi of one, en-de: the score is" in done.output


def test_a_metric_that_needs_references_says_so(place: Path, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row().items() if key != "reference"}]
    options = ("--input", rows_file(tmp_path, *rows), "--metric", f"x={place / 'comet'}")
    done = evaluate(*options)
    assert done.code == 2 and "--metric x compares with a reference" in done.output
