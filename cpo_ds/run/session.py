"""Runs a recipe from start to end: locks the folder, watches the ranks, trains, exports."""

from __future__ import annotations

from pathlib import Path

import torch

from cpo_ds.config import Config
from cpo_ds.engine.settings import DeepSpeedSettings, read_deepspeed_settings
from cpo_ds.errors import NonFiniteError, Stopped, UserError
from cpo_ds.model.precision import with_precision
from cpo_ds.ranks.logs import RankLog
from cpo_ds.ranks.quiet import silence_after_import
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.ranks.stopping import StopRequest
from cpo_ds.ranks.watch import Watch
from cpo_ds.run.allocators import keep_freed_memory
from cpo_ds.run.arithmetic import set_arithmetic
from cpo_ds.run.build import RunInputs, as_trained, build_run, find_resume, run_identity
from cpo_ds.run.final_export import export_run
from cpo_ds.run.folder import (
    clear_finished,
    finished_step,
    make_output_folder,
    write_config,
    write_finished,
)
from cpo_ds.run.pairs import prepare_pairs, with_template_date
from cpo_ds.run.planned import with_plan
from cpo_ds.run.trainer import planned_steps, train
from cpo_ds.storage.lock import FolderLock, hold_folder


def run_recipe(config: Config, *, verbose: bool = False) -> None:
    """Runs a recipe as one of the ranks. `verbose` shows all messages of libraries.

    Raises `UserError`, `NonFiniteError`, and `Stopped` if the run was asked to stop.
    """
    set_arithmetic(deterministic=config.train.deterministic)
    keep_freed_memory()
    ranks = init_ranks(config.train.stall_minutes)
    config, precision = with_precision(config, ranks)
    config, planned = with_plan(config, ranks)
    settings = ranks.everywhere(lambda: read_deepspeed_settings(config))
    stop = StopRequest(config.train.max_hours)
    stop.listen()
    if not verbose:
        silence_after_import()
    # Keep other runs out of the folder; each host has one if checkpoints are on its own disk.
    folder = Path(config.output_dir)
    ranks.everywhere(lambda: make_output_folder(folder))
    locks: list[FolderLock] = []  # held as long as this function runs
    in_folders = ranks.per_folder(is_local=settings.keeps_local_checkpoints)
    in_folders(lambda: locks.append(hold_folder(folder)))
    # From here on each rank writes its own log, and a lost or hung rank ends the run.
    log = RankLog(ranks.rank, folder)
    log.open()
    if precision:
        ranks.say(precision)
    for line in planned:
        ranks.say(line)
    with Watch(ranks, folder, config.train.stall_minutes, log.console):
        _train_and_export(config, settings, ranks, stop)
        ranks.wait_for_all()
    log.close()
    torch.distributed.destroy_process_group()


def _train_and_export(
    config: Config, settings: DeepSpeedSettings, ranks: Ranks, stop: StopRequest
) -> None:
    folder = Path(config.output_dir)
    config = ranks.on_first(lambda: with_template_date(config))
    # Read and tokenize the pairs once, on rank 0; the other ranks wait for them.
    tokenizer, train_pairs, eval_pairs = ranks.on_first(
        lambda: prepare_pairs(config, prints_counts=True)
    )
    # Find the checkpoint to go on from, if the folder has one.
    identity = ranks.on_first(lambda: run_identity(config, train_pairs))
    resume = find_resume(config, settings, ranks, identity)
    steps = planned_steps(config, len(train_pairs))
    if resume and resume.manifest.step > steps:
        raise UserError(
            f"{resume.saved} is of step {resume.manifest.step}, but train.epochs and train."
            f"max_steps make a run of {steps}; raise them, or name an earlier checkpoint.resume."
        )
    if resume and resume.manifest.step == steps:
        # All steps are trained. The run may have been interrupted after them, before its export.
        if ranks.on_first(lambda: finished_step(config)) == steps:
            ranks.say(
                f"{folder} is finished, at step {steps} of {steps}. Nothing was trained again and "
                "nothing rewritten; for a run with other settings choose another output_dir."
            )
            ranks.on_first(lambda: write_finished(folder, steps))
            return
        config = as_trained(config, resume.manifest)
    ranks.on_first(lambda: clear_finished(folder))
    ranks.on_first(lambda: write_config(config, folder, ranks.world_size))
    # Load the policy, then train it.
    run = build_run(
        RunInputs(config, settings, ranks, train_pairs, eval_pairs, identity, resume, stop)
    )
    if resume:
        ranks.say(f"resumed from {resume.saved} at step {run.first_step} of {run.total_steps}")
    try:
        train(run)
    except (Stopped, NonFiniteError):
        ranks.on_first(run.monitor.close)
        raise
    # Export, and mark the run as finished when nothing is left to do.
    if config.checkpoint.export:
        export_run(run, settings, tokenizer)
    run.saver.check_last(run.total_steps)
    ranks.on_first(run.monitor.close)
    ranks.on_first(lambda: write_finished(folder, steps))
