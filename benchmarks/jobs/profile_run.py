"""Profiles one step of this trainer: the same run as `train_ours`, a step longer."""

from __future__ import annotations

import tempfile
import time
from typing import Any
from unittest import mock

import torch
from measures.probe import Probe
from measures.step_profile import split_step
from measures.step_ranges import OPTIMIZER, in_range, mark_policy
from torch.profiler import ProfilerActivity, profile

from jobs.job import Job
from jobs.train_ours import run_ours


class ProfilingProbe(Probe):
    """Times the steps as ever, then records one more under the profiler."""

    def __init__(self, warmup_steps: int, timed_steps: int) -> None:
        super().__init__(warmup_steps, timed_steps)
        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, acc_events=True)
        self._began: float | None = None
        self.split: dict[str, Any] = {}

    def step_is_done(self) -> bool:
        """Takes the time of a step; after the last one a profiled step follows."""
        if self._began is None:
            if super().step_is_done():
                self._profile.__enter__()
                self._began = time.perf_counter()
            return False
        if self._on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._began
        self._profile.__exit__(None, None, None)
        # The profiler slows a CPU down, but no kernel of a GPU: there the timed steps count.
        clock = self.result()["step_seconds_p50"] if self._on_gpu else seconds
        events = self._profile.events() or []
        self.split = split_step(events, clock, on_gpu=self._on_gpu)
        self.split["profiled_seconds"] = round(seconds, 6)
        return True


def profile_job(job: Job) -> dict[str, Any]:
    """Trains for the job's steps and one more, in this process; returns the measurements.

    `job.timed_steps` counts the profiled step too.
    """
    from cpo_ds.engine.engine import Engine
    from cpo_ds.model.load import load_policy

    def load(*arguments: Any, **options: Any) -> Any:
        policy, *rest = load_policy(*arguments, **options)
        mark_policy(policy)
        return (policy, *rest)

    torch.set_num_threads(job.threads)
    probe = ProfilingProbe(job.warmup_steps, job.timed_steps - 1)
    update = in_range(OPTIMIZER, Engine.update)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("cpo_ds.run.build.load_policy", load),
        mock.patch.object(Engine, "update", update),
    ):
        measured = run_ours(job, probe, folder)
    return measured | probe.split
