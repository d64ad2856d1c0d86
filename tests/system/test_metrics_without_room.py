"""Lines of metrics wait for room on a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from small_disk import Disk

from cpo_ds.errors import UserError
from cpo_ds.run.monitor import Monitor
from cpo_ds.storage.metrics_file import cut_back_metrics


def monitor(folder: Path, first_step: int = 0, *, tensorboard: bool = False) -> Monitor:
    cut_back_metrics(folder, first_step)
    return Monitor(folder, tensorboard=tensorboard, first_step=first_step, total_steps=99)


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
    """The end of the disk cuts a page in two; no byte is lost, doubled or out of order."""
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
    written = len(steps_in(disk.folder))
    with pytest.raises(UserError, match=rf"the last {60 - written} line\(s\) of .*metrics.jsonl"):
        out.close()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be cut back to step 10"):
        monitor(disk.folder, first_step=10)
    disk.make_room()
    again = monitor(disk.folder, first_step=10)
    write(again, 11, 60)
    again.close()
    assert steps_in(disk.folder) == list(range(1, 61))
