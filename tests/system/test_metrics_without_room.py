"""Lines of metrics wait for room on a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_disk import Disk

from cpo_ds.errors import UserError
from cpo_ds.run.monitor import Monitor
from cpo_ds.schema import TokenizedPair
from cpo_ds.storage.held_out_file import PairMargin, read_margins
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


def test_margins_without_room_leave_those_before(
    disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = TokenizedPair(np.arange(9, dtype=np.int32), 3, (3, 3), (2, 2), "en-de", "pairs.jsonl:1")
    out = monitor(disk.folder)
    out.write_margins(0, [pair], [1.0])
    disk.fill()
    for step in (5, 6):
        out.write_margins(step, [pair], [2.0])
    assert capfd.readouterr().out.count("held_out_pairs.jsonl cannot be written") == 1
    first = PairMargin(0, "pairs.jsonl:1", "en-de", 1.0)
    assert read_margins(disk.folder) == [first]
    # What waits is written as soon as there is room.
    disk.make_room()
    out.sync()
    assert read_margins(disk.folder) == [first, PairMargin(6, "pairs.jsonl:1", "en-de", 2.0)]
    disk.fill()
    out.write_margins(7, [pair], [3.0])
    disk.make_room()
    out.close()
    assert read_margins(disk.folder) == [first, PairMargin(7, "pairs.jsonl:1", "en-de", 3.0)]


def test_the_first_margins_wait_too(disk: Disk) -> None:
    pair = TokenizedPair(np.arange(9, dtype=np.int32), 3, (3, 3), (2, 2), "en-de", "pairs.jsonl:1")
    out = monitor(disk.folder)
    disk.fill()
    for step in (0, 5, 9):
        out.write_margins(step, [pair], [float(step)])
    disk.make_room()
    out.close()
    assert [(m.step, m.reward_margin) for m in read_margins(disk.folder)] == [(0, 0.0), (9, 9.0)]
