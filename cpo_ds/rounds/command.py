"""`cpo-ds rounds`: iterated CPO. Sample, score, select, train and evaluate, again and again."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.ranks.relaunch import is_rank
from cpo_ds.rounds.checks import Inputs, check
from cpo_ds.rounds.child import Runner, StageFailed
from cpo_ds.rounds.layout import system_of
from cpo_ds.rounds.page import console_table, findings, page
from cpo_ds.rounds.record import check_record, write_record
from cpo_ds.rounds.results import Course, Trained, read_times, read_trained, write_results
from cpo_ds.rounds.settings import load_rounds
from cpo_ds.rounds.stages import BEST, stages_of, write_inputs
from cpo_ds.rounds.verdict import Verdict, best_round, read_verdict, reason_to_stop
from cpo_ds.storage.files import writing
from cpo_ds.storage.lock import hold_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds rounds`."""
    add = parser.add_argument
    add(
        "--config",
        required=True,
        type=Path,
        metavar="FILE",
        help="YAML with the settings of all stages, like examples/rounds.yaml",
    )
    add("--dry-run", action="store_true", help="check everything, show the stages, write nothing")


def run(arguments: argparse.Namespace) -> int:
    """Carries out the rounds that are left; returns the exit code.

    It is a failed stage's own, and 4 if a stop was requested. Raises `UserError`.
    """
    if is_rank():
        raise UserError("cpo-ds rounds starts the ranks of its stages itself; start it once.")
    inputs = check(load_rounds(arguments.config))
    check_record(inputs)
    for warning in inputs.warnings:
        print(f"warning: {warning}")
    if arguments.dry_run:
        _show(inputs)
        return 0

    # Keep a second start out, and write down the settings before anything follows from them.
    folder = inputs.layout.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be made: {error.strerror}.") from None
    lock = hold_folder(folder)
    write_record(inputs)
    print(f"rounds in {folder}; the output of each stage is in {folder / 'logs'}", flush=True)
    runner = Runner(inputs.layout.log, inputs.layout.times)
    try:
        with runner.listening():
            course = _carry_out(inputs, runner)
    except StageFailed as failure:
        return failure.code
    finally:
        lock.close()
    print(console_table(inputs, course))
    for sentence in findings(inputs, course):
        print(sentence)
    print(f"results: {inputs.layout.results}, report: {inputs.layout.page}")
    return 0


def _carry_out(inputs: Inputs, runner: Runner) -> Course:
    """Carries out all rounds, and reports after each of them.

    Nothing is kept but the files of the stages: a later start reads the same from them.
    """
    planned, allowed = inputs.settings.rounds, inputs.settings.watch.stop_if_falls_by
    verdicts: list[Verdict] = []
    trained: list[Trained] = []
    stopped = None
    for number in range(planned + 1):
        best = best_round(verdicts, inputs.deciding[0].name) if verdicts else 0
        write_inputs(inputs, number)
        for stage in stages_of(inputs, number, system_of(best)):
            runner.run(stage)
        trained += [read_trained(inputs, number)] if number else []
        compared = system_of(best) if number else None
        evaluation = inputs.layout.at(number, "evaluation.json")
        verdicts.append(read_verdict(evaluation, number, inputs.shown, compared))
        stopped = reason_to_stop(verdicts[-1], inputs.deciding, allowed)
        best = best_round(verdicts, inputs.deciding[0].name)
        course = Course(tuple(verdicts), tuple(trained), best, stopped, planned)
        _report(inputs, course)
        if course.is_over:
            break
    return course


def _report(inputs: Inputs, course: Course) -> None:
    write_results(inputs, course)
    with writing(inputs.layout.page) as unfinished:
        text = page(inputs, course, read_times(inputs.layout))
        unfinished.write_text(text, encoding="utf-8")


def _show(inputs: Inputs) -> None:
    """Prints the stages and their commands; `BEST` stands for the best round until then."""
    settings = inputs.settings
    per_round = min(settings.sources.per_round or len(inputs.sources), len(inputs.sources))
    print(
        f"{settings.rounds} rounds at most in {inputs.layout.folder}, each with "
        f"{settings.sample.num} samples of {per_round} of {len(inputs.sources)} sources; "
        f"{len(inputs.watched)} watched texts"
    )
    print(
        f"selecting: {', '.join(m.name for m in inputs.selecting)}; deciding: "
        f"{', '.join(m.name for m in inputs.deciding)}"
    )
    for number in range(settings.rounds + 1):
        for stage in stages_of(inputs, number, BEST if number > 1 else system_of(0)):
            done = " (done before)" if stage.is_complete() else ""
            print(f"{stage}{done}:\n  cpo-ds {shlex.join(stage.argv)}")
