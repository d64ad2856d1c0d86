"""The command `cpo-ds`: what people do with a run before and after training."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from cpo_ds.doctor.options import add_doctor, run_doctor
from cpo_ds.prepare.options import add_prepare

EXIT_DAMAGED = 1  # `cpo-ds checkpoints` found damage


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code: 0, or 2 where the user can put something right."""
    # Before any heavy import, so that --help is quick; some commands take a recipe's options.
    parser = _parser()
    arguments, recipe = parser.parse_known_args(argv)
    if recipe and arguments.run_command not in (_plan, run_doctor):
        parser.error(f"unrecognized arguments: {' '.join(recipe)}")
    arguments.recipe = recipe
    arguments.argv = sys.argv[1:] if argv is None else argv  # for who starts it on several ranks
    from cpo_ds.errors import EXIT_USER_ERROR, UserError

    try:
        return arguments.run_command(arguments)
    except UserError as error:
        print(f"cpo_ds: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("cpo_ds: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cpo-ds", description="Tools around a cpo_ds run.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, about: str, function: object, details: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=f"{about}. {details}".strip())
        command.add_argument("run", metavar="RUN", type=Path, help="output_dir of a run")
        command.set_defaults(run_command=function)
        return command

    exporter = add("export", "write a model or adapter from a checkpoint", _export)
    _add_checkpoint(exporter)
    exporter.add_argument(
        "--output", metavar="FOLDER", type=Path, help="new folder to write to (RUN/export...)"
    )
    exporter.add_argument(
        "--merge", action="store_true", help="add a LoRA adapter to its base: a full model"
    )
    exporter.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (the run's)"
    )
    add("report", "print a table of held-out metrics and draw the curves", _report)
    add(
        "checkpoints",
        "list a run's checkpoints and verify every byte",
        _checkpoints,
        f"Exit code {EXIT_DAMAGED} where one is damaged.",
    )
    universal = add("universal", "convert a checkpoint for any number of ranks", _universal)
    _add_checkpoint(universal)
    _add_plan(commands)
    add_doctor(commands)
    add_prepare(commands)
    return parser


def _add_plan(commands: Any) -> None:
    about = "say what a recipe needs on which GPUs, before anything is rented or downloaded"
    planner = commands.add_parser(
        "plan",
        help=about,
        description=f"{about}. Recipe options as in training: --config, --section.field value.",
        allow_abbrev=False,
    )
    planner.add_argument("--shape", metavar="NAME", help="a model shape in place of the recipe's")
    planner.add_argument("--gpus", type=int, default=8, help="GPUs of each node (8)")
    planner.add_argument("--nodes", type=int, default=1, help="nodes (1)")
    planner.add_argument("--device", metavar="NAME", help="a known GPU: A100-80GB, H100, ...")
    planner.add_argument("--gpu-memory", metavar="GIB", type=float, help="memory of each GPU")
    planner.add_argument("--pairs", type=int, help="pairs in the data set, for the run's time")
    planner.add_argument("--json", action="store_true", help="print JSON instead of text")
    planner.set_defaults(run_command=_plan)


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", metavar="STEP", help="a step or a step-... folder (the newest intact one)"
    )


def _export(arguments: argparse.Namespace) -> int:
    _import_quietly()
    from cpo_ds.export.from_checkpoint import export

    export(
        arguments.run,
        arguments.checkpoint,
        arguments.output,
        merge=arguments.merge,
        dtype=arguments.dtype,
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from cpo_ds.run.report import main as report

    return report([str(arguments.run)])


def _checkpoints(arguments: argparse.Namespace) -> int:
    from cpo_ds.checkpoint.inventory import list_checkpoints

    table, all_intact = list_checkpoints(arguments.run)
    print(table)
    return 0 if all_intact else EXIT_DAMAGED


def _universal(arguments: argparse.Namespace) -> int:
    from cpo_ds.checkpoint.inventory import find_intact
    from cpo_ds.checkpoint.reshard import convert
    from cpo_ds.storage.lock import hold_folder

    path, manifest = find_intact(arguments.run, arguments.checkpoint, print)
    if manifest.zero_stage == 0:
        print(f"{path} was saved at ZeRO stage 0 and fits any number of ranks as it is")
        return 0
    lock = hold_folder(path.parent.parent)  # a run that goes on would tidy up under it
    folder, seconds = convert(path, manifest, path.parent)
    lock.close()
    print(f"{folder} " + ("is there already" if seconds is None else f"took {seconds:.0f} s"))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    _import_quietly()
    from cpo_ds.planner.command import run

    return run(arguments, arguments.recipe)


def _import_quietly() -> None:
    """Imports the libraries that export and plan need without what they say to themselves."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from cpo_ds.ranks.quiet import silence_after_import, silence_libraries

    silence_libraries()
    import cpo_ds.export.from_checkpoint  # noqa: F401

    silence_after_import()


if __name__ == "__main__":
    sys.exit(main())
