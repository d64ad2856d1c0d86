"""Full disks, folders that cannot be written, two runs in one folder: said, and nothing lost.

The disk is a tmpfs of a few MiB, which root alone may mount.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import workers
import yaml
from launch import Finished, main_on_ranks, on_ranks
from runs import lines, newest, small_recipe

from cpo_ds.errors import UserError
from cpo_ds.run.folder import make_output_folder
from cpo_ds.run.monitor import Monitor, cut_back_metrics
from cpo_ds.storage.lock import hold_folder

RANKS, STEPS = 2, 3
ROOM = 16  # MiB that are enough; a checkpoint takes 1.7


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
    """The metrics of a run that nothing happened to."""
    folder = recipe.parent / "whole"
    assert run(recipe, folder).code == 0
    return lines(folder)


def run(recipe: Path, output: Path, *arguments: object, ranks: int = RANKS) -> Finished:
    """What rank 0 did; the others must not have been left behind."""
    first, *others = main_on_ranks(
        "--config", recipe, "--output_dir", output, *arguments, ranks=ranks
    )
    assert "Traceback" not in first.output, first.output
    assert all(other.code in (first.code, -9) for other in others), others
    return first


class Disk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")

    def remount(self, *options: str) -> None:
        subprocess.run(
            ["mount", "-o", ",".join(["remount", *options]), str(self.folder)], check=True
        )

    def fill(self) -> None:
        """Takes all the room that is left, to the byte."""
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = Disk(tmp_path / "disk")
    found.folder.mkdir()
    found.mount(f"size={ROOM}m")
    try:
        yield found
    finally:
        subprocess.run(["umount", "-l", str(found.folder)], check=True)


def left(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in background"])
def test_a_full_disk_at_save(
    recipe: Path, whole: list[dict[str, Any]], disk: Disk, in_background: bool
) -> None:
    """The first checkpoint fits, the second and the last do not."""
    disk.remount("size=3m")
    output = disk.folder / "run"
    arguments = ("--checkpoint.in_background", str(in_background).lower())
    done = run(recipe, output, *arguments)
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
    done = run(recipe, output, *arguments)
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
    done = run(recipe, output, *arguments, "--checkpoint.on_save_error", "stop")
    assert done.code == 2, done.output
    assert "error: the checkpoint of step 2 could not be saved" in done.output
    assert "run the same again" in done.output
    assert left(output) == ["latest", "step-00000001"]


def test_a_disk_that_is_full_from_some_step_on(
    recipe: Path, whole: list[dict[str, Any]], disk: Disk
) -> None:
    """Not a byte for metrics, TensorBoard, checkpoints: nothing hangs, and a resume repeats it."""
    output = disk.folder / "run"
    arguments = ("--logging.tensorboard", "true", "--train.eval_every_steps", "1")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, recipe, output, *arguments)
        while not (output / "checkpoints" / "latest").exists():
            assert not running.done(), running.result()
            time.sleep(0.002)
        disk.fill()
        done = running.result()
    assert done.code == 2, done.output
    assert "could not be saved" in done.output and done.output.count("cpo_ds: error: ") == 1
    steps = [int(name[5:]) for name in left(output) if name.startswith("step-")]
    assert steps and max(steps) < STEPS and f"step-{max(steps):08d}" == newest(output)

    again = run(recipe, output, *arguments)
    assert again.code == 2 and "No space left on device" in again.output, again.output
    disk.make_room()
    again = run(recipe, output, *arguments)
    assert again.code == 0 and f"at step {max(steps)} of {STEPS}" in again.output, again.output
    assert [line for line in lines(output) if "loss" in line] == [
        line for line in whole if "loss" in line
    ]
    held_out = [line["step"] for line in lines(output) if "eval_loss" in line]
    assert held_out == list(range(STEPS + 1))


def test_a_later_checkpoint_makes_good_for_one_that_failed(recipe: Path, tmp_path: Path) -> None:
    """Its folder cannot be made, so that no rank enters DeepSpeed's save."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "tmp-step-00000002").write_text("in the way")
    done = run(recipe, tmp_path / "run", ranks=1)
    assert done.code == 0, done.output
    assert "checkpoint of step 2 could not be saved" in done.output
    assert "tmp-step-00000002: File exists" in done.output
    assert {"step-00000001", "step-00000003"} <= set(left(tmp_path / "run"))
    assert newest(tmp_path / "run") == "step-00000003"


def test_what_a_killed_save_left_makes_room_first(recipe: Path, disk: Disk) -> None:
    """Room for one checkpoint alone, and it is taken by a part of another."""
    disk.remount("size=3m")
    unfinished = disk.folder / "run" / "checkpoints" / "tmp-step-00000007"
    unfinished.mkdir(parents=True)
    (unfinished / "part.pt").write_bytes(b"\0" * 2**21)
    done = run(recipe, disk.folder / "run", "--train.max_steps", "1", ranks=1)
    assert done.code == 0, done.output
    assert left(disk.folder / "run") == ["latest", "step-00000001"]


def test_a_read_only_folder(recipe: Path, disk: Disk) -> None:
    output = disk.folder / "run"
    output.mkdir()
    disk.remount("ro")
    done = run(recipe, output)
    assert done.code == 2, done.output
    assert f"output_dir {output} cannot be written: Read-only file system" in done.output
    disk.remount("rw")
    assert list(output.iterdir()) == []


def test_a_named_checkpoint_that_is_not_there(recipe: Path, tmp_path: Path) -> None:
    absent = tmp_path / "other" / "checkpoints" / "step-00000009"
    done = run(recipe, tmp_path / "run", "--checkpoint.resume", absent)
    assert done.code == 2 and f"checkpoint.resume names {absent}" in done.output, done.output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot be written: .*; make room"):
            make_output_folder(folder)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_two_runs_in_one_folder(recipe: Path, tmp_path: Path) -> None:
    output, steps = tmp_path / "run", 12
    same = ["--config", str(recipe), "--output_dir", str(output)]
    same += ["--train.epochs", "4", "--train.max_steps", str(steps)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(main_on_ranks, *same)
        while not (output / "metrics.jsonl").exists():
            assert not first.done(), first.result()
            time.sleep(0.002)
        holder = (output / "lock").read_text()
        (second,) = on_ranks(workers.main_without_patience, [*same, "--train.seed", "9"])
        assert not first.done(), "the first was over before the second was refused"
        (done,) = first.result()
    assert second.code == 2 and "Traceback" not in second.output, second.output
    assert f"another run is writing to {output} ({holder})" in second.output
    assert holder.startswith("process ") and " on host " in holder
    assert done.code == 0, done.output
    found = [line["step"] for line in lines(output) if "loss" in line]
    assert found == list(range(1, steps + 1))
    assert yaml.safe_load((output / "config.yaml").read_text())["train"]["seed"] != 9


def test_a_lock_ends_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpo_ds.run.folder._LOCK_SECONDS", 0.0)
    first = hold_folder(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on host"):
        hold_folder(tmp_path)
    first.close()
    hold_folder(tmp_path).close()
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match="lock, which keeps a second run out, cannot be written"):
        hold_folder(tmp_path)


def monitor(folder: Path, first_step: int = 0, *, tensorboard: bool = False) -> Monitor:
    cut_back_metrics(folder, first_step)
    return Monitor(
        folder, is_writer=True, tensorboard=tensorboard, first_step=first_step, total_steps=99
    )


def steps_in(folder: Path) -> list[int]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}")]


def write(out: Monitor, first: int, last: int) -> None:
    for step in range(first, last + 1):
        out.write({"step": step, "loss": 0.5, "padding": "x" * 100})


@pytest.mark.parametrize("tensorboard", [False, True])
def test_lines_wait_for_room(
    disk: Disk, capfd: pytest.CaptureFixture[str], tensorboard: bool
) -> None:
    """A page is cut in two by the end of the disk; no byte is lost, doubled or out of order."""
    out = monitor(disk.folder, tensorboard=tensorboard)
    write(out, 1, 10)
    disk.fill()
    write(out, 11, 90)
    out.sync()
    assert 10 < len(steps_in(disk.folder)) < 60
    said = capfd.readouterr()
    assert said.out.count("metrics.jsonl cannot be written") == 1
    assert os.strerror(errno.ENOSPC) in said.out
    assert said.out.count("TensorBoard") == int(tensorboard)
    assert "Traceback" not in said.err
    disk.make_room()
    out.sync()
    assert steps_in(disk.folder) == list(range(1, 91))
    write(out, 91, 99)
    out.close()
    assert steps_in(disk.folder) == list(range(1, 100))


def test_lines_that_found_no_room_till_the_end_are_said_to_be_lost(disk: Disk) -> None:
    out = monitor(disk.folder)
    write(out, 1, 10)
    disk.fill()
    write(out, 11, 60)
    there = len(steps_in(disk.folder))
    with pytest.raises(UserError, match=rf"the last {60 - there} line\(s\) of .*metrics.jsonl"):
        out.close()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be cut back to step 10"):
        monitor(disk.folder, first_step=10)
    disk.make_room()
    again = monitor(disk.folder, first_step=10)
    write(again, 11, 60)
    again.close()
    assert steps_in(disk.folder) == list(range(1, 61))
