"""Full disks: nothing hangs, the run says what to do, and a resume loses nothing."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from runs import lines, newest, run_recipe, small_recipe
from small_disk import ROOM, Disk

STEPS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_recipe(
        tmp_path_factory.mktemp("disk"),
        data={"directions": ["en-de"]},
        batch={"pairs": 8},
        train={"max_steps": STEPS, "eval_every_steps": 2},
        checkpoint={"every_steps": 1, "export": False},
    )


@pytest.fixture(scope="module")
def whole(recipe: Path) -> list[dict[str, Any]]:
    """Metrics of an undisturbed run."""
    folder = recipe.parent / "whole"
    assert run_recipe(recipe, folder).code == 0
    return lines(folder)


def left(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in background"])
def test_a_full_disk_at_save(
    recipe: Path, whole: list[dict[str, Any]], disk: Disk, in_background: bool
) -> None:
    """The disk has room for the first checkpoint, but not for the second and the last."""
    disk.remount("size=3m")
    output = disk.folder / "run"
    arguments = ("--checkpoint.in_background", str(in_background).lower())
    done = run_recipe(recipe, output, *arguments)
    assert done.code == 2, done.output
    for step in (2, 3):
        said = [text for text in done.output.splitlines() if f"checkpoint of step {step} " in text]
        assert len(said) == 1 and said[0].startswith("warning"), done.output
        assert f"checkpoints/tmp-step-0000000{step}/" in said[0]
        assert "No space left on device" in said[0] and "goes on" in said[0]
    assert done.output.count("cpo_ds: error: ") == 1
    assert f"last checkpoint, of step {STEPS}, could not be saved" in done.output
    assert left(output) == ["latest", "step-00000001"] and newest(output) == "step-00000001"
    assert lines(output) == whole  # the run itself went on to its end

    disk.remount(f"size={ROOM}m")
    done = run_recipe(recipe, output, *arguments)
    assert done.code == 0 and "at step 1 of 3" in done.output, done.output
    assert lines(output) == whole
    assert left(output) == ["latest", "step-00000002", "step-00000003"]


@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in background"])
def test_a_full_disk_stops_a_run_that_wants_to(
    recipe: Path, disk: Disk, in_background: bool
) -> None:
    disk.remount("size=3m")
    output = disk.folder / "run"
    arguments = ["--checkpoint.in_background", str(in_background).lower()]
    done = run_recipe(recipe, output, *arguments, "--checkpoint.on_save_error", "stop")
    assert done.code == 2, done.output
    assert "error: the checkpoint of step 2 could not be saved" in done.output
    assert "run the same command again" in done.output
    assert left(output) == ["latest", "step-00000001"]


def test_a_disk_that_is_full_from_some_step_on(
    recipe: Path, whole: list[dict[str, Any]], disk: Disk
) -> None:
    """Without a free byte nothing hangs, and a resume repeats the steps."""
    output = disk.folder / "run"
    arguments = ("--logging.tensorboard", "true", "--train.eval_every_steps", "1")
    # The disk is filled after the first checkpoint.
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_recipe, recipe, output, *arguments)
        while not (output / "checkpoints" / "latest").exists():
            assert not running.done(), running.result()
            time.sleep(0.002)
        disk.fill()
        done = running.result()
    assert done.code == 2, done.output
    assert "could not be saved" in done.output and done.output.count("cpo_ds: error: ") == 1
    steps = [int(name[5:]) for name in left(output) if name.startswith("step-")]
    assert steps and max(steps) < STEPS and f"step-{max(steps):08d}" == newest(output)

    # A restart without room ends too; with room it repeats the undisturbed run.
    again = run_recipe(recipe, output, *arguments)
    assert again.code == 2 and "No space left on device" in again.output, again.output
    disk.make_room()
    again = run_recipe(recipe, output, *arguments)
    assert again.code == 0 and f"at step {max(steps)} of {STEPS}" in again.output, again.output
    assert [line for line in lines(output) if "loss" in line] == [
        line for line in whole if "loss" in line
    ]
    held_out = [line["step"] for line in lines(output) if "eval_loss" in line]
    assert held_out == list(range(STEPS + 1))


def test_a_later_checkpoint_makes_good_for_one_that_failed(recipe: Path, tmp_path: Path) -> None:
    """A checkpoint's folder cannot be created, so that no rank enters DeepSpeed's save."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "tmp-step-00000002").write_text("in the way")
    done = run_recipe(recipe, tmp_path / "run", ranks=1)
    assert done.code == 0, done.output
    assert "checkpoint of step 2 could not be saved" in done.output
    assert "tmp-step-00000002: File exists" in done.output
    assert {"step-00000001", "step-00000003"} <= set(left(tmp_path / "run"))
    assert newest(tmp_path / "run") == "step-00000003"


def test_what_a_killed_save_left_makes_room_first(recipe: Path, disk: Disk) -> None:
    """The disk has room for one checkpoint, which a part of another one takes."""
    disk.remount("size=3m")
    unfinished = disk.folder / "run" / "checkpoints" / "tmp-step-00000007"
    unfinished.mkdir(parents=True)
    (unfinished / "part.pt").write_bytes(b"\0" * 2**21)
    done = run_recipe(recipe, disk.folder / "run", "--train.max_steps", "1", ranks=1)
    assert done.code == 0, done.output
    assert left(disk.folder / "run") == ["latest", "step-00000001"]
