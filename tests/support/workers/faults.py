"""Runs in which a rank dies, hangs, fails or is slow at a chosen moment."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from cpo_ds.checkpoint import save as saver
from cpo_ds.checkpoint.publish import checkpoint_name
from cpo_ds.data import rows
from cpo_ds.export import shards
from cpo_ds.ranks import roll_call, watch
from cpo_ds.run import session, trainer
from cpo_ds.run.main import main


def die_while_saving(step: int, *arguments: str) -> int:
    """Trains, but is killed when a step's checkpoint is written and has no final name yet."""
    publish = saver.publish

    def publish_or_die(unfinished: Path, final: Path) -> None:
        if final.name == checkpoint_name(step):
            os.kill(os.getpid(), signal.SIGKILL)
        publish(unfinished, final)

    with mock.patch.object(saver, "publish", publish_or_die):
        return main(list(arguments))


def die_without_grace(step: int, rank: int, *arguments: str) -> int:
    """Trains, but a rank is killed in a step; the watch may wait for ever for others to end."""
    plan = trainer.plan

    def plan_or_die(run: trainer.Run, now: int) -> Any:
        if now == step and run.ranks.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_die),
        mock.patch.object(watch, "_GRACE_SECONDS", 3600.0),
    ):
        return main(list(arguments))


def hang(step: int, *arguments: str) -> int:
    """Trains, but rank 1 hangs in the planning of a step; the watch waits less than usual."""
    plan = trainer.plan

    def plan_or_hang(run: trainer.Run, now: int) -> Any:
        while now == step and run.ranks.rank == 1:
            time.sleep(1)
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_hang),
        mock.patch.object(watch, "_GRACE_SECONDS", 2.0),
    ):
        return main(list(arguments))


def hang_before_training(where: str, rank: int, *arguments: str) -> int:
    """Trains, but a rank never comes back from a function that is called before the first step."""
    module, _, name = where.rpartition(".")
    original = getattr(importlib.import_module(module), name)

    def call_or_hang(*inputs: Any, **options: Any) -> Any:
        while os.environ["RANK"] == str(rank):
            time.sleep(1)
        return original(*inputs, **options)

    with mock.patch(where, call_or_hang), mock.patch.object(watch, "_GRACE_SECONDS", 2.0):
        return main(list(arguments))


def start_and_export_slowly(seconds: float, *arguments: str) -> int:
    """Trains, but reading rows and writing the export take `seconds` each, in small pieces."""
    make_row, save_file = rows._make_row, shards.save_file
    pauses = 20
    slow_rows = iter(range(pauses))

    def make_row_slowly(*inputs: Any) -> Any:
        if next(slow_rows, None) is not None:
            time.sleep(seconds / pauses)
        return make_row(*inputs)

    def save_file_slowly(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        with tempfile.TemporaryFile() as file:
            for _ in range(pauses):
                time.sleep(seconds / pauses)
                file.write(bytes(2**20))
                file.flush()
        save_file(tensors, path, **options)

    with (
        mock.patch.object(rows, "_make_row", make_row_slowly),
        mock.patch.object(shards, "save_file", save_file_slowly),
        mock.patch.object(watch, "_GRACE_SECONDS", 2.0),
    ):
        return main(list(arguments))


def train_while_the_clock_is_set(step: int, folder: str, *arguments: str) -> int:
    """Trains, but from a step on the system's clock is an hour later, and so is its time of boot.

    Libraries and programs see it too if the rank may mount: `/proc/stat` is another file then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    may_mount = libc.unshare(0x00020000) == 0  # CLONE_NEWNS: mounts are this process's own
    may_mount = may_mount and libc.mount(b"none", b"/", None, 0x44000, None) == 0  # private
    plan, wall_clock, boot_time = trainer.plan, time.time, psutil._pslinux.boot_time
    lines = Path("/proc/stat").read_text().splitlines()
    later = [f"btime {int(t.split()[1]) + 3600}" if t.startswith("btime") else t for t in lines]

    def plan_and_set(run: trainer.Run, now: int) -> Any:
        if now == step:
            time.time = lambda: wall_clock() + 3600
            psutil._pslinux.boot_time = lambda: boot_time() + 3600
            if may_mount:
                file = Path(folder) / f"stat-{run.ranks.rank}"
                file.write_text("\n".join(later))
                assert libc.mount(bytes(file), b"/proc/stat", None, 0x1000, None) == 0  # MS_BIND
                assert Path("/proc/stat").read_text() == "\n".join(later)
            time.sleep(5 * watch.BEAT_SECONDS)
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_and_set),
        mock.patch.object(time, "time", wall_clock),
        mock.patch.object(psutil._pslinux, "boot_time", boot_time),
        mock.patch.object(watch, "_GRACE_SECONDS", 1.0),
    ):
        return main(list(arguments))


def write_limits(report: str, *arguments: str) -> int:
    """Trains; each rank writes the timeouts of its process groups, in minutes."""
    train = session.train

    def write_and_train(run: trainer.Run) -> None:
        c10d = torch.distributed.distributed_c10d
        groups = [group for group in c10d._world.pg_map if isinstance(group, c10d.ProcessGroup)]
        limits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
        limits += [c10d._get_default_timeout("nccl"), c10d._get_default_timeout("gloo")]
        limits.append(c10d._get_default_store().timeout)
        minutes = [limit.total_seconds() / 60 for limit in limits]
        Path(f"{report}-{run.ranks.rank}.json").write_text(json.dumps(minutes))
        train(run)

    with mock.patch.object(session, "train", write_and_train):
        return main(list(arguments))


def suspend(step: int, *arguments: str) -> int:
    """Trains, but rank 0's process is suspended at a step; silent ranks count as lost sooner."""
    plan = trainer.plan

    def plan_or_stop(run: trainer.Run, now: int) -> Any:
        if now == step and run.ranks.rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_stop),
        mock.patch.multiple(watch, SILENT_SECONDS=4.0, _GRACE_SECONDS=2.0),
    ):
        return main(list(arguments))


def suspend_with_a_broken_connection(step: int, *arguments: str) -> int:
    """Trains, but rank 1's process is suspended at a step; NCCL would tell rank 0 of it.

    Each rank seems to be on a host of its own. Silence alone would take longer than the test.
    """
    plan, own_process = trainer.plan, roll_call.own_process
    started_at: list[float] = []

    def plan_or_stop(run: trainer.Run, now: int) -> Any:
        if now == step and run.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        started_at.extend([time.monotonic()] if now == step else [])
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_stop),
        mock.patch.object(watch, "a_connection_broke", lambda: bool(started_at)),
        mock.patch.object(
            roll_call, "own_process", lambda rank: replace(own_process(rank), host=f"host-{rank}")
        ),
        mock.patch.multiple(
            watch, SILENT_SECONDS=300.0, _SILENT_AFTER_BREAK_SECONDS=3.0, _GRACE_SECONDS=2.0
        ),
    ):
        return main(list(arguments))


def fail_alone(step: int, rank: int, error: str, *arguments: str) -> int:
    """Trains, but one rank fails at a step without telling the others.

    `error` is `bug`, `memory` or `files`.

    The watch asks all the time, so also between the rank's error report and its end.
    """
    plan = trainer.plan

    def plan_or_fail(run: trainer.Run, now: int) -> Any:
        if now == step and run.ranks.rank == rank:
            if error == "memory":
                torch.empty(2**50)
            if error == "files":
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
                os.dup(0)
            raise ValueError(f"of rank {rank} alone")
        return plan(run, now)

    with (
        mock.patch.object(trainer, "plan", plan_or_fail),
        mock.patch.object(watch, "BEAT_SECONDS", 0.01),
    ):
        return main(list(arguments))
