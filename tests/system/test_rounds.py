"""Two rounds of a tiny model by a tiny COMET model, undisturbed, stopped and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import rounds_runs
import yaml
from launch import finish, start
from rounds_runs import COMET_PYTHON, COMMAND, differing, published, rounds, torture

KILLS = int(os.environ.get("CPO_DS_TEST_KILLS", "2"))  # 20 take five minutes on two cores

pytestmark = [
    pytest.mark.skipif(
        not COMET_PYTHON.is_file(), reason="needs COMET: bash scripts/setup.sh --comet"
    ),
    pytest.mark.timeout(1800),  # many processes, each with its imports
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of two rounds."""
    folder = tmp_path_factory.mktemp("rounds")
    return rounds_runs.settings(folder, f"tiny={rounds_runs.metric(folder / 'metrics')}")


@pytest.fixture(scope="module")
def whole(file: Path) -> Path:
    """The folder of undisturbed rounds, moved away; their output is beside it."""
    done = rounds(file)
    assert done.code == 0, done.output
    (file.parent / "whole.txt").write_text(done.output, encoding="utf-8")
    return Path(shutil.move(file.parent / "out", file.parent / "whole"))


def test_two_rounds_end_to_end(file: Path, whole: Path) -> None:
    lines = (file.parent / "whole.txt").read_text(encoding="utf-8").splitlines()
    stages = [line.split(" ... ")[0] for line in lines if line.startswith("round ")]
    each = ["sample", "score", "select", "train", "translate", "evaluate"]
    expected = ["round 0, translate", "round 0, evaluate"]
    assert stages == expected + [f"round {n}, {stage}" for n in (1, 2) for stage in each]
    assert all(" s" in line for line in lines if line.startswith("round "))

    # Each round starts where the last one ended, with samples of its own.
    values = json.loads((whole / "rounds.json").read_text())
    assert values["finished"] and [one["round"] for one in values["rounds"]] == [0, 1, 2]
    recipe = yaml.safe_load((whole / "round-2" / "recipe.yaml").read_text())
    assert recipe["model"]["adapter"].endswith("out/round-1/run/export")
    exports = [whole / f"round-{n}/run/export/adapter_model.safetensors" for n in (1, 2)]
    assert exports[0].read_bytes() != exports[1].read_bytes()
    for number in (1, 2):
        trained = values["rounds"][number]["trained"]
        assert trained["sources"] == 8 and trained["sampled"] == 32
        assert trained["comparisons"] > trained["pairs"] > 0 and trained["accuracy"] is not None
        watched = values["rounds"][number]["watched"]
        assert set(watched) == {"chrf", "tiny"} and watched["chrf"]["half_width"] is not None
    rows = [json.loads(line) for line in (whole / "round-2/watched.jsonl").open()]
    assert all(set(row["candidates"]) == {"start", "round-1", "round-2"} for row in rows)
    best = values["best"]["round"]
    assert (whole / "best").is_symlink() == (best > 0)


def test_done_rounds_are_done_and_more_can_follow(file: Path, whole: Path) -> None:
    output = Path(shutil.copytree(whole, file.parent / "out", symlinks=True))
    before = published(output)
    done = rounds(file)
    assert done.code == 0 and done.output.count("done before") == 14, done.output
    assert published(output) == before
    values = yaml.safe_load(file.read_text())
    other = file.with_name("other.yaml")
    other.write_text(yaml.safe_dump(values | {"seed": 5}))
    done = rounds(other)
    assert done.code == 2 and "another seed (0, now 5)" in done.output
    shutil.rmtree(output)


def test_killed_anywhere_and_started_again_all_bytes_are_the_same(file: Path, whole: Path) -> None:
    output = file.parent / "out"
    met = torture(file, output, KILLS, seed=3)
    assert met
    assert differing(published(whole), published(output)) == [], met
    shutil.rmtree(output)


@pytest.mark.parametrize("stage", ["sample", "train"])
def test_a_stop_is_passed_on(file: Path, whole: Path, stage: str) -> None:
    """SIGTERM: the stage ends, the exit code is 4, and the same command goes on."""
    output = file.parent / "out"
    if stage == "train":  # its stages before are done
        shutil.copytree(whole, output, symlinks=True)
        shutil.rmtree(output / "round-1" / "run")
        shutil.rmtree(output / "round-2")
    run = start([*COMMAND, "--config", str(file)])
    log = output / "logs" / f"round-1-{stage}.txt"
    size = log.stat().st_size if log.exists() else 0
    while run.poll() is None and (not log.exists() or log.stat().st_size == size):
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGTERM)
    done = finish(run, 120)
    assert done.code == 4, done.output
    assert "stopped: asked to by SIGTERM" in done.output and "Traceback" not in done.output
    if stage == "train":
        done = rounds(file)
        assert done.code == 0, done.output
        assert differing(published(whole), published(output)) == []
    shutil.rmtree(output)


def test_a_stage_does_not_outlive_the_rounds(file: Path, whole: Path) -> None:
    output = file.parent / "out"
    run = start([*COMMAND, "--config", str(file)])
    log = output / "logs" / "round-1-sample.txt"
    below: list[psutil.Process] = []
    while run.poll() is None and not (log.exists() and below):  # the log is there first
        time.sleep(0.01)
        below = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    finish(run, 60)
    assert below and psutil.wait_procs(below, timeout=60)[1] == []
    shutil.rmtree(output)


def test_a_failed_stage_is_told_with_its_exit_code(file: Path, whole: Path) -> None:
    output = file.parent / "out"
    shutil.copytree(whole, output, symlinks=True)
    shutil.rmtree(output / "round-2")
    shutil.rmtree(output / "round-1" / "pairs")
    shutil.rmtree(output / "round-1" / "run")
    rows = [json.loads(line) for line in (output / "round-1" / "scored.jsonl").open()]
    for row in rows:  # of the same score, so that no pair is left
        row["scores"]["tiny"] = dict.fromkeys(row["scores"]["tiny"], 0.5)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (output / "round-1" / "scored.jsonl").write_text(text)
    done = rounds(file)
    assert done.code == 2 and "no pair is left" in done.output, done.output
    assert "round 1, select ended with exit code 2. All of its output: " in done.output
    shutil.rmtree(output)
