"""Runs whose checkpoints are due by a clock that the test sets, a minute a step on rank 0."""

from __future__ import annotations

import functools
import os
from unittest import mock

from cpo_ds.checkpoint.interval import SaveInterval
from cpo_ds.run import build, trainer
from cpo_ds.run.main import main


def train_by_clock(*arguments: str) -> int:
    """Trains a recipe; the clock of rank 1 runs backwards, and those of others an hour a step."""
    rank = int(os.environ["RANK"])
    seconds_a_step = {0: 60.0, 1: -60.0}.get(rank, 3600.0)
    clock = [0.0]
    save_or_stop = trainer.save_or_stop

    def after_a_step(run: trainer.Run, step: int) -> None:
        clock[0] += seconds_a_step
        save_or_stop(run, step)

    interval = functools.partial(SaveInterval, clock=lambda: clock[0])
    with (
        mock.patch.object(build, "SaveInterval", interval),
        mock.patch.object(trainer, "save_or_stop", after_a_step),
    ):
        return main(list(arguments))
