"""Runs a recipe from start to end: locks the folder, watches the ranks, trains, exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cpo_ds.config import Config
from cpo_ds.data.selected import with_selecting_metrics
from cpo_ds.engine.settings import DeepSpeedSettings, read_deepspeed_settings
from cpo_ds.errors import NonFiniteError, Stopped, UserError
from cpo_ds.model.precision import with_precision
from cpo_ds.ranks.launchers import Launcher, end_with
from cpo_ds.ranks.logs import RankLog
from cpo_ds.ranks.quiet import silence_after_import
from cpo_ds.ranks.ranks import Ranks, find_place, join_ranks
from cpo_ds.ranks.roll_call import call_roll
from cpo_ds.ranks.stopping import StopRequest
from cpo_ds.ranks.watch import Watch
from cpo_ds.run.allocators import keep_freed_memory
from cpo_ds.run.anew import check_inputs_stay, finish_move, is_again, move_aside, start_variables
from cpo_ds.run.arithmetic import set_arithmetic
from cpo_ds.run.build import (
    Resume,
    RunInputs,
    as_trained,
    build_run,
    find_resume,
    for_these_ranks,
    run_identity,
    say_changes,
)
from cpo_ds.run.final_export import export_run
from cpo_ds.run.folder import (
    clear_finished,
    is_described,
    is_finished,
    is_measured,
    make_output_folder,
    mark_finished_again,
    write_config,
    write_finished,
)
from cpo_ds.run.pair_sharing import load_pairs
from cpo_ds.run.pairs import tokenizer_fingerprints, with_template_date
from cpo_ds.run.planned import with_plan
from cpo_ds.run.tracker_kinds import check_trackers
from cpo_ds.run.trainer import planned_steps, train
from cpo_ds.storage.lock import FolderLock, hold_folder


def run_recipe(
    config: Config, *, verbose: bool = False, launchers: Sequence[Launcher] = ()
) -> None:
    """Runs a recipe as one of the ranks. `verbose` shows all messages of libraries.

    The run saves and ends if one of `launchers` does.

    Raises `UserError`, `NonFiniteError`, and `Stopped` if the run was asked to stop.
    """
    set_arithmetic(deterministic=config.train.deterministic)
    keep_freed_memory()
    stop = StopRequest(config.train.max_hours)
    own, limit = find_place(), config.train.stall_minutes
    end_with(launchers, stop, is_shown=own.rank == 0)
    roll = call_roll(own, limit)
    # From here on a rank that is lost or hangs ends the run.
    with Watch(roll, limit) as watch:
        ranks = join_ranks(own, limit)
        log = _run(config, ranks, watch, stop, verbose=verbose)
    log.close()
    torch.distributed.destroy_process_group()


def _run(
    config: Config, ranks: Ranks, watch: Watch, stop: StopRequest, *, verbose: bool
) -> RankLog:
    """Prepares the run's folder, then trains; returns this rank's log."""
    ranks.on_first(lambda: check_trackers(config.logging.trackers))
    config, precision = with_precision(config, ranks)
    folder = Path(config.output_dir)
    restarts = config.checkpoint.resume == "restart"
    start = ranks.on_first(start_variables)
    if restarts:
        ranks.on_first(lambda: check_inputs_stay(config))
        if ranks.on_first(lambda: is_again(folder, start)):
            config = _resuming(config)
    config, planned = with_plan(config, ranks)
    settings = ranks.everywhere(lambda: read_deepspeed_settings(config))
    stop.listen()
    if not verbose:
        silence_after_import()
    # Keep other runs out of the folder; each host has one if checkpoints are on its own disk.
    ranks.everywhere(lambda: make_output_folder(folder))
    locks: list[FolderLock] = []  # held as long as this function runs
    in_folders = ranks.per_folder(is_local=settings.keeps_local_checkpoints)
    in_folders(lambda: locks.append(hold_folder(folder)))
    aside = in_folders(lambda: move_aside(folder, start) if restarts else finish_move(folder))
    if restarts:
        config = _resuming(config)
    # From here on each rank writes its own log.
    log = RankLog(ranks.rank, folder)
    log.open()
    watch.keep_in(folder, log.console)
    if aside:
        ranks.say(f"the earlier run in {folder} was moved to {aside}; this one begins anew")
    if precision:
        ranks.say(precision)
    for line in planned:
        ranks.say(line)
    _train_and_export(config, settings, ranks, stop)
    ranks.wait_for_all()
    return log


def _train_and_export(
    config: Config, settings: DeepSpeedSettings, ranks: Ranks, stop: StopRequest
) -> None:
    folder = Path(config.output_dir)
    config = ranks.on_first(lambda: with_template_date(config))
    # Rank 0 finds the tokenized pairs, or makes them; all ranks map them into memory.
    is_local = settings.keeps_local_checkpoints
    tokenizer, train_pairs, eval_pairs, named = load_pairs(config, ranks, is_local=is_local)
    config = with_selecting_metrics(config, named)
    # Find the checkpoint to go on from, if the folder has one.
    identity = ranks.on_first(lambda: run_identity(config, train_pairs))
    fingerprints = ranks.on_first(lambda: tokenizer_fingerprints(tokenizer))
    resume = find_resume(config, settings, ranks, identity, fingerprints)
    steps = planned_steps(config, len(train_pairs))
    measured = False  # all steps are trained and measured, so that only the export is left
    if resume and resume.manifest.step != steps:
        say_changes(resume, config, settings, ranks)
    if resume and _is_trained(resume, steps):
        measured = ranks.on_first(lambda: is_measured(folder, steps, evaluates=bool(eval_pairs)))
        if _is_all_done(config, ranks, steps, measured=measured):
            return
        config = as_trained(config, resume.manifest)
    if resume:
        resume = for_these_ranks(resume, config, settings, ranks)
    ranks.on_first(
        lambda: _describe(config, folder, ranks.world_size, resume if measured else None)
    )
    # Load the policy, then train it.
    run = build_run(
        RunInputs(
            config,
            settings,
            ranks,
            train_pairs,
            eval_pairs,
            identity=identity,
            tokenizer=fingerprints,
            text_tokenizer=tokenizer,
            resume=resume,
            is_measured=measured,
            stop=stop,
        )
    )
    if resume:
        ranks.say(f"resumed from {resume.saved} at step {run.first_step} of {run.total_steps}")
    try:
        if not measured:
            train(run)
    except (Stopped, NonFiniteError):
        ranks.on_first(run.monitor.close)
        raise
    # Export, and mark the run as finished when nothing is left to do.
    if config.checkpoint.export:
        run.monitor.sync()  # the model card shows metrics, whose lines may wait for room
        export_run(run, settings, tokenizer)
    run.saver.check_last(run.total_steps)
    ranks.on_first(run.monitor.close)
    ranks.on_first(lambda: write_finished(folder, steps, exported=config.checkpoint.export))


def _is_all_done(config: Config, ranks: Ranks, steps: int, *, measured: bool) -> bool:
    """Whether nothing is left to do for a run whose steps are all trained; if so, says it."""
    folder = Path(config.output_dir)
    needs_nothing = measured and not config.checkpoint.export
    if not needs_nothing and not ranks.on_first(lambda: is_finished(config, steps)):
        return False
    ranks.say(
        f"{folder} is finished, at step {steps} of {steps}. Nothing was trained again and nothing "
        "rewritten; for a run with other settings choose another output_dir, or checkpoint.resume: "
        "restart."
    )
    ranks.on_first(lambda: mark_finished_again(folder, steps))
    return True


def _describe(config: Config, folder: Path, world_size: int, trained: Resume | None) -> None:
    """Writes the configuration, unless the folder has that of a checkpoint that needs no more."""
    clear_finished(folder)
    if trained is None or not is_described(folder, trained.manifest):
        write_config(config, folder, world_size)


def _resuming(config: Config) -> Config:
    """The recipe with `checkpoint.resume: auto`, for a folder without an earlier run."""
    checkpoint = config.checkpoint.model_copy(update={"resume": "auto"})
    return config.model_copy(update={"checkpoint": checkpoint})


def _is_trained(resume: Resume, steps: int) -> bool:
    """Whether a checkpoint is of the last step. Raises `UserError` if it is of a later one."""
    if resume.manifest.step > steps:
        raise UserError(
            f"{resume.saved} is of step {resume.manifest.step}, but train.epochs and train."
            f"max_steps make a run of {steps}; raise them, or name an earlier checkpoint.resume."
        )
    return resume.manifest.step == steps
