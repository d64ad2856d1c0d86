"""`cpo-ds prepare score` with COMET models of the real architecture, in COMET's environment."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import launch
import pytest
from repository import ROOT
from runs import lines, small_recipe

from cpo_ds import cli

WMT22 = ROOT.parent / "shared" / "data" / "wmt22_candidates.jsonl.gz"
COMET = ROOT / ".venv-comet" / "bin" / "python"
pytestmark = pytest.mark.skipif(not COMET.exists(), reason="no .venv-comet: setup.sh --comet")

KINDS = ("kiwi", "unite", "xcomet", "comet", "qe")
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def real_rows() -> list[dict[str, Any]]:
    """Sentences of the built-in sample; three are repeated until they are too long."""
    lines = [
        json.loads(line)
        for file in sorted((ROOT / "cpo_ds" / "data" / "sample").glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()[:4]
    ]
    rows = [
        {
            "language_pair": line["language_pair"],
            "source": line["source"],
            "reference": line["chosen"],
            "candidates": {"flawed": line["rejected"], "other": other["chosen"]},
            "id": number,
        }
        for number, (line, other) in enumerate(zip(lines, lines[1:] + lines[:1], strict=True))
    ]
    for row in rows[:3]:
        row["source"] *= 6
        row["candidates"]["flawed"] *= 6
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score_command(models: Path, rows: Path, output: Path, *options: object) -> list[str]:
    metrics = [word for kind in KINDS for word in ("--metric", f"{kind}={models / kind}")]
    command = [str(Path(launch.ENVIRONMENT["PATH"].split(":")[0]) / "cpo-ds"), "prepare", "score"]
    files = ["--input", str(rows), "--output", str(output), "--batch-tokens", "1024", "--spans"]
    return [*command, *files, *metrics, *map(str, options)]


def score(*arguments: Any) -> list[dict[str, Any]]:
    done = launch.finish(launch.start(score_command(*arguments)))
    assert done.code == 0, done.output
    return read(arguments[2])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, rows, and the scores of COMET's own `predict`."""
    folder = tmp_path_factory.mktemp("score")
    write(folder / "rows.jsonl", real_rows())
    kinds = [*KINDS[:-2], "unite+", "xcomet+", "comet+", "qe"]
    code = (
        "import sys; from models import comet_models as c; "
        "f, s, *k = sys.argv[1:]; c.make_models(f, s, *k); "
        f"c.predict(f, f + '/rows.jsonl', f + '/predicted.json', *{kinds!r})"
    )
    command = [str(COMET), "-W", "ignore", "-c", code, str(folder), json.dumps(SIZES), *KINDS]
    done = launch.finish(launch.start(command, {"PYTHONPATH": str(ROOT / "benchmarks")}))
    assert done.code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def alone(place: Path) -> list[dict[str, Any]]:
    return score(place, place / "rows.jsonl", place / "alone.jsonl")


def check_against_comet(rows: list[dict[str, Any]], place: Path, kinds: dict[str, str]) -> Counter:
    """Scores and spans equal those of COMET's `predict`; counts what was compared."""
    predicted = json.loads((place / "predicted.json").read_text())
    compared: Counter[str] = Counter()
    for kind, theirs in kinds.items():
        names = [(row, name) for row in rows for name in ("reference", *row["candidates"])]
        ours = [row["scores"][kind][name] for row, name in names]
        assert ours == pytest.approx(predicted[theirs]["scores"], abs=1e-5), kind
        assert max(ours) - min(ours) > 0.1, "scores that hardly differ show nothing"
        compared[kind] += len(ours)
        for (row, name), spans in zip(names, predicted[theirs]["spans"] or [], strict=False):
            own = row["error_spans"][kind][name]
            confidence = [span.pop("confidence") for span in spans]
            assert [span["confidence"] for span in own] == pytest.approx(confidence, abs=1e-5)
            assert [{k: v for k, v in s.items() if k != "confidence"} for s in own] == spans
            compared[f"{kind} spans"] += len(spans)
    return compared


def test_scores_are_those_of_comet(place: Path, alone: Any) -> None:
    kinds = {"kiwi": "kiwi", "unite": "unite", "xcomet": "xcomet", "comet": "comet+", "qe": "qe"}
    compared = check_against_comet(alone, place, kinds)
    assert compared["xcomet"] == 120 and compared["xcomet spans"] > 100, compared
    for row, original in zip(alone, real_rows(), strict=True):
        assert {key: row[key] for key in original} == original
        about = row["scorers"]
        assert {about[kind]["dtype"] for kind in KINDS} == {"float32"}
        assert [kind for kind in KINDS if about[kind]["uses_reference"]] == ["comet"]
        assert about["kiwi"]["version"] == "unbabel-comet 2.2.7"


def test_split_over_two_ranks_with_references(place: Path) -> None:
    rows = score(
        place, place / "rows.jsonl", place / "split.jsonl", "--ranks", 2, "--shard",
        "--use-reference",
    )  # fmt: skip
    kinds = {"kiwi": "kiwi", "unite": "unite+", "xcomet": "xcomet+", "comet": "comet+", "qe": "qe"}
    assert check_against_comet(rows, place, kinds)["unite"] == 120
    assert rows[0]["scorers"]["xcomet"]["uses_reference"] is True


def test_three_ranks_and_rows_in_another_order(place: Path, alone: Any) -> None:
    rows = real_rows()
    random.Random(1).shuffle(rows)
    shuffled = write(place / "shuffled.jsonl", rows)
    scored = score(place, shuffled, place / "three.jsonl", "--ranks", 3)
    assert sorted(scored, key=lambda row: row["id"]) == alone


def test_killed_and_started_again_nothing_is_scored_twice(place: Path, alone: Any) -> None:
    """Killed while the second metric is being scored by two ranks."""
    output = place / "killed.jsonl"
    command = score_command(place, place / "rows.jsonl", output, "--ranks", 2)
    run = launch.start(command)
    cache = output.with_name("killed.jsonl.cache")
    wait_for(run, lambda: len({part.name.split(".")[0] for part in cache.glob("*.jsonl")}) == 2)
    launch.kill(run)
    launch.finish(run)
    assert not output.exists()
    before = {part.name: part.read_text() for part in cache.glob("*.jsonl")}
    done = launch.finish(launch.start(command))
    assert done.code == 0 and "were scored before" in done.output, done.output
    assert output.read_bytes() == (place / "alone.jsonl").read_bytes()
    for part, content in before.items():
        assert (cache / part).read_text().startswith(content)
    keys: Counter[tuple[str, str]] = Counter()
    for part in cache.glob("*.jsonl"):
        for line in part.read_text().split("\n"):
            keys.update((part.name.split(".")[0], key) for key in (json.loads(line or "{}")))
    assert set(keys.values()) == {1}
    assert len(keys) == len(KINDS) * len(keys_of(alone))


def keys_of(rows: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Translations to score; the same text of one source counts once."""
    return {
        (row["source"], text, row["language_pair"], row["reference"])
        for row in rows
        for text in (row["reference"], *row["candidates"].values())
    }


def wait_for(run: subprocess.Popen[str], happened: Any) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert run.poll() is None and time.monotonic() < deadline, launch.finish(run, 1).output
        time.sleep(0.005)


def test_from_scores_to_a_trained_model(place: Path, tmp_path: Path) -> None:
    """Real sources and systems, scored, selected, reported on, and trained on for three steps."""
    if not WMT22.exists():
        pytest.skip(f"no WMT22 translations at {WMT22}")
    with gzip.open(WMT22, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 0, 16000, 400)]
    command = score_command(place, write(tmp_path / "rows.jsonl", rows), tmp_path / "scored.jsonl")
    done = launch.finish(launch.start(command))
    assert done.code == 0, done.output
    scored, pairs = str(tmp_path / "scored.jsonl"), tmp_path / "pairs"
    assert cli.main(["prepare", "select", "--input", scored, "--output", str(pairs)]) == 0
    page = tmp_path / "report.html"
    assert cli.main(["prepare", "report", "--input", scored, "--output", str(page)]) == 0
    assert "xcomet" in page.read_text(encoding="utf-8")
    mean = {id(row): row["scores"] for row in read(tmp_path / "scored.jsonl")}
    best = [max(s["kiwi"], key=lambda n, s=s: s["kiwi"][n] + s["xcomet"][n]) for s in mean.values()]
    selected = read(pairs / "pairs.jsonl")
    assert len(selected) > 30 and len({row["direction"] for row in selected}) > 5
    assert Counter(row["chosen_system"] for row in selected) <= Counter(best)
    output = tmp_path / "run"
    recipe = small_recipe(
        tmp_path / "recipe",
        data={"format": "alma-r", "path": str(pairs / "alma-r"), "directions": None,
              "eval_fraction": 0.0, "max_tokens": 2048, "max_prompt_tokens": 1024},
        batch={"pairs": 8, "tokens_per_rank": 8192},
        train={"max_steps": 3, "eval_every_steps": None},
    )  # fmt: skip
    (trained,) = launch.main_on_ranks("--config", recipe, "--output-dir", output)
    assert trained.code == 0, trained.output
    assert f"kept {len(selected)} pairs" in trained.output
    assert [line["step"] for line in lines(output)] == [1, 2, 3]


def test_an_encoder_that_is_not_there_is_said(place: Path, tmp_path: Path) -> None:
    """A missing encoder ends in one error and exit code 2."""
    (place / "encoder").rename(place / "gone")
    try:
        command = score_command(place, place / "rows.jsonl", tmp_path / "x.jsonl")
        done = launch.finish(launch.start(command))
    finally:
        (place / "gone").rename(place / "encoder")
    assert done.code == 2, done.output
    assert "whose configuration and tokenizer cannot be loaded" in done.output
    assert "Traceback" not in done.output
