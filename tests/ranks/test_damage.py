"""Any damage to a checkpoint's files is found and named; no damaged file loads silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from launch import main_on_ranks, on_ranks
from runs import lines, small_recipe, undisturbed_run
from workers import damage

RANKS = 2
STEPS = 3  # checkpoints after steps 2 and 3, whose names are one bit apart
OLDER, NEWEST = "step-00000002", "step-00000003"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(
        tmp_path_factory.mktemp("damage"),
        data={"directions": ["en-de"]},
        batch={"pairs": 8},
        train={"max_steps": STEPS, "eval_every_steps": 2},
        checkpoint={"every_steps": 2, "export": False},
    )


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The output folder of an undisturbed run."""
    return undisturbed_run(recipe, RANKS)


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def resume(recipe: Path, output: Path, *arguments: object) -> Any:
    return main_on_ranks("--config", recipe, "--output_dir", output, *arguments, ranks=RANKS)[0]


def flip(path: Path, bit: int = 4003) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_manifest_lists_every_file(whole: Path) -> None:
    for name in (OLDER, NEWEST):
        folder = whole / "checkpoints" / name
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        files_left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files_left == set(listed) | {"manifest.json"}
        assert len(files_left) == 3 * RANKS + 1  # weights, optimizer and random state of each rank


def test_every_file_damaged_in_every_way(whole: Path, output: Path) -> None:
    """Each file is truncated, emptied, removed, gets a flipped bit, and is then restored."""
    report = output / "report.json"
    (done,) = on_ranks(damage.find_damaged, [str(output / "checkpoints"), NEWEST, str(report)])
    assert done.code == 0, done.output
    outcomes = json.loads(report.read_text())
    files = {path.name for path in (whole / "checkpoints" / NEWEST).iterdir()}
    assert {case["file"] for case in outcomes["damaged"]} == files
    ways = {"truncated", "emptied", "bit", "removed"}
    assert {(case["file"], case["way"].split()[0]) for case in outcomes["damaged"]} == {
        (file, way) for file in files for way in ways
    }
    for case in outcomes["damaged"]:
        where = f"{NEWEST}/{case['file']}"
        assert case["fall_back"] == OLDER, case
        assert len(case["said"]) == 1 and where in case["said"][0], case
        assert f"Going on from {OLDER}" in case["said"][0], case
        assert where in case["stop"] and "on_damage: fall_back" in case["stop"], case
        assert where in case["named"] and "checkpoint.resume" in case["named"], case
    # Negative control: nothing is wrong before, in between and after.
    assert outcomes["untouched"] == [[NEWEST, [], NEWEST, NEWEST]] * len(outcomes["untouched"])
    assert len(outcomes["untouched"]) > 2


def test_every_damage_to_latest_is_said(output: Path) -> None:
    """Every bit of `latest` is flipped too; one flip makes it name the older checkpoint."""
    report = output / "report.json"
    arguments = [str(output / "checkpoints"), NEWEST, str(report)]
    (done,) = on_ranks(damage.find_with_damaged_latest, arguments)
    assert done.code == 0, done.output
    cases = json.loads(report.read_text())
    last_bit = f"bit {8 * (len(NEWEST) - 1)}"
    assert {"removed", "emptied", last_bit} < {case["way"] for case in cases}
    assert len(cases) == 8 * len(NEWEST) + 4
    for case in cases:
        assert len(case["said"]) == 1 and "checkpoints/latest" in case["said"][0], case
        if case["way"] == last_bit:
            assert (case["found"], case["stop"]) == (OLDER, None), case
        else:
            assert case["found"] == NEWEST and "checkpoints/latest" in case["stop"], case


@pytest.mark.parametrize("file", ["zero_pp_rank_1_*optim_states.pt", "manifest.json"])
def test_a_resume_falls_back_and_ends_as_if_nothing_had_been(
    recipe: Path, whole: Path, output: Path, file: str
) -> None:
    (path,) = (output / "checkpoints" / NEWEST).glob(file)
    flip(path)
    done = resume(recipe, output)
    assert done.code == 0, done.output
    (warning,) = (line for line in done.output.splitlines() if "warning" in line)
    assert f"{NEWEST}/{path.name}" in warning and f"Going on from {OLDER}" in warning
    assert f"at step {OLDER[-1]} of {STEPS}" in done.output
    assert lines(output) == lines(whole)
    again = resume(recipe, output)  # what was damaged is replaced
    assert again.code == 0 and "warning" not in again.output, again.output
    assert f"at step {STEPS} of {STEPS}" in again.output
    assert lines(output) == lines(whole)


def test_a_resume_stops_where_it_is_asked_to(recipe: Path, output: Path) -> None:
    path = output / "checkpoints" / NEWEST / "random_state_rank_1.pt"
    path.unlink()
    before = (output / "metrics.jsonl").read_bytes()
    done = resume(recipe, output, "--checkpoint.on_damage", "stop")
    assert done.code == 2 and "Traceback" not in done.output, done.output
    assert f"{path} is not there" in done.output
    assert (output / "metrics.jsonl").read_bytes() == before


def test_where_all_are_damaged_nothing_starts_anew(recipe: Path, output: Path) -> None:
    for name in (OLDER, NEWEST):
        flip(output / "checkpoints" / name / "random_state_rank_0.pt")
    before = (output / "metrics.jsonl").read_bytes()
    done = resume(recipe, output)
    assert done.code == 2 and "Traceback" not in done.output, done.output
    for name in (OLDER, NEWEST):
        assert f"{name}/random_state_rank_0.pt was changed" in done.output
    assert "No intact checkpoint" in done.output and "fall_back" not in done.output
    assert (output / "metrics.jsonl").read_bytes() == before
    assert {OLDER, NEWEST} <= {path.name for path in (output / "checkpoints").iterdir()}


def test_where_latest_names_a_checkpoint_and_none_is_there(recipe: Path, output: Path) -> None:
    for name in (OLDER, NEWEST):
        shutil.rmtree(output / "checkpoints" / name)
    done = resume(recipe, output)
    assert done.code == 2 and "checkpoints/latest names a checkpoint" in done.output, done.output
