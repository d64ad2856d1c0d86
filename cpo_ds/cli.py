"""The command `cpo-ds`: names of commands and the modules that carry them out.

A command's module has `add_options(parser)` and `run(arguments)`, which returns the exit code. Only
the module of the given command is imported, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from cpo_ds import __version__
from cpo_ds.errors import EXIT_USER_ERROR, UserError, did_you_mean
from cpo_ds.ranks.console import CONSOLE, plain_console
from cpo_ds.ranks.limits import disk_problem, path_problem

EXIT_NO_READER = 141  # 128 + SIGPIPE, as shells count
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Command(NamedTuple):
    """A command's module and its line in the help."""

    module: str
    about: str
    takes_recipe: bool = False  # `--config` and `--section.field value`, as in training


COMMANDS = {
    "init": Command("cpo_ds.start.init_command", "write a recipe for your model and pairs"),
    "recipes": Command("cpo_ds.start.recipes_command", "list the shipped recipes, or copy one"),
    "import": Command(
        "cpo_ds.start.import_command",
        "write a recipe from settings of TRL, ALMA or LLaMA-Factory, and list every difference",
    ),
    "train": Command(
        "cpo_ds.start.train",
        "train a recipe on the GPUs of this machine, or on several hosts",
        takes_recipe=True,
    ),
    "export": Command("cpo_ds.export.command", "write a model or adapter from a checkpoint"),
    "report": Command(
        "cpo_ds.report.command", "print held-out metrics of runs, and write their curves and a page"
    ),
    "checkpoints": Command(
        "cpo_ds.checkpoint.list_command", "list a run's checkpoints and verify every byte"
    ),
    "universal": Command(
        "cpo_ds.checkpoint.universal_command", "convert a checkpoint for any number of ranks"
    ),
    "rounds": Command(
        "cpo_ds.rounds.command", "sample, score, select, train and evaluate, round after round"
    ),
    "translate": Command(
        "cpo_ds.translate.command", "translate rows, text or a test set by a model"
    ),
    "evaluate": Command(
        "cpo_ds.evaluate.command", "score translations of systems by BLEU, chrF and neural metrics"
    ),
    "evaluate audit": Command(
        "cpo_ds.evaluate.audit_command",
        "count empty, copied, repeated and wrong-language texts of systems or of pairs",
    ),
    "evaluate human": Command(
        "cpo_ds.evaluate.human.command", "draw translations for people to judge, and tally scores"
    ),
    "plan": Command(
        "cpo_ds.planner.command",
        "estimate the memory and time of a recipe on given GPUs, before anything is downloaded",
        takes_recipe=True,
    ),
    "doctor": Command(
        "cpo_ds.doctor.command",
        "check this machine, or the hosts of a hostfile, and say how to fix what is wrong",
        takes_recipe=True,
    ),
    "completion": Command(
        "cpo_ds.start.completion_command", "print a script for bash, zsh or fish to complete words"
    ),
}
PREPARE_STEPS = {  # of `cpo-ds prepare`, in order
    "from-tm": Command(
        "cpo_ds.prepare.from_tm", "make pairs of a translation memory and drafts of its targets"
    ),
    "candidates": Command(
        "cpo_ds.prepare.candidates", "translate sources, or read translations of systems"
    ),
    "score": Command("cpo_ds.prepare.score", "score candidates by COMET models, chrF or BLEU"),
    "select": Command("cpo_ds.prepare.select", "choose and reject translations by their scores"),
    "noise": Command(
        "cpo_ds.prepare.noise", "replace rejected texts by noised copies of the chosen ones"
    ),
    "report": Command("cpo_ds.prepare.report", "analyse scores and choices in one HTML file"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code, such as 2 for a `UserError` or a full disk."""
    # Commands draw files, whatever backend of matplotlib a notebook has set.
    os.environ["MPLBACKEND"] = "Agg"
    with plain_console():
        return _main(sys.argv[1:] if argv is None else argv, owns_process=argv is None)


def _main(argv: list[str], *, owns_process: bool) -> int:
    # Problems that the user can solve are one line, without a stack trace.
    try:
        arguments = _parsed(argv)
        arguments.owns_process = owns_process  # then what it imports serves no other command
        code = arguments.run_command(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        _tell_error(str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "cpo_ds"):
            raise
        _tell_error(
            f"the package {package} is not installed in {sys.executable}; activate the "
            "environment, or set it up: bash scripts/setup.sh, or pip install cpo-ds. "
            "cpo-ds doctor checks it."
        )
        return EXIT_USER_ERROR
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename == CONSOLE:
            return EXIT_NO_READER
        if (problem := disk_problem(error) or path_problem(error)) is None:
            raise
        _tell_error(problem)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("cpo_ds: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parsed(argv: list[str]) -> argparse.Namespace:
    """The command's arguments. Raises `UserError` for unknown or missing ones."""
    joined = _joined(argv)
    _check_command(joined)
    arguments, recipe = _parser(joined).parse_known_args(joined)
    # Arguments that the parser does not know are a recipe's options, for commands that take them.
    if recipe and not arguments.takes_recipe:
        arguments.parser.error(f"unrecognized arguments: {' '.join(recipe)}")
    arguments.recipe = recipe
    arguments.all_commands = _all_commands  # for shells, which complete their words
    arguments.argv = argv  # for commands that start themselves again on several ranks
    return arguments


def _all_commands() -> dict[str, tuple[argparse.ArgumentParser, bool]]:
    """The parser of each command with its options, and whether the command takes a recipe."""
    steps = {f"prepare {name}": step for name, step in PREPARE_STEPS.items()}
    parsers: dict[str, tuple[argparse.ArgumentParser, bool]] = {}
    for name, command in {**COMMANDS, **steps}.items():
        parsers[name] = (_Parser(prog=f"cpo-ds {name}"), command.takes_recipe)
        importlib.import_module(command.module).add_options(parsers[name][0])
    return parsers


def _check_command(argv: list[str]) -> None:
    """Raises `UserError` for a command, or a step of `prepare`, that does not exist."""
    names = [*COMMANDS, "prepare"]
    prog, kind = "cpo-ds", "command"
    if argv[:1] == ["prepare"]:
        argv, names, prog, kind = argv[1:], list(PREPARE_STEPS), "cpo-ds prepare", "step"
    if not argv:
        raise UserError(f"give a {kind}, one of {', '.join(names)}; {prog} --help says more.")
    given = argv[0]
    if given not in names and not given.startswith("-"):
        hint = did_you_mean(given, names)
        if given.endswith((".yaml", ".yml")):
            hint = f" (did you mean a command with --config {given}?)"
        raise UserError(
            f"there is no {kind} {given}{hint}; they are {', '.join(names)}. "
            f"{prog} --help says more."
        )


def _tell_error(text: str) -> None:
    """Prints an error after all that was printed before, also if both go to the same file."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    print(f"cpo_ds: error: {text}", file=sys.stderr)


def _joined(argv: list[str]) -> list[str]:
    """The arguments with a command of two words as one."""
    both = " ".join(argv[:2])
    return [both, *argv[2:]] if both in COMMANDS else argv


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one paragraph, with the closest option for an unknown one."""

    takes_recipe = False  # then an option that it does not know may be a recipe's
    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        # An option that is missing may be there, misspelled.
        unknown = None if self.takes_recipe else next(filter(self._is_unknown, self._given), None)
        if unknown is not None:
            hint = did_you_mean(unknown.split("=")[0], list(self._option_string_actions))
            message = f"there is no option {unknown}{hint}"
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"it needs {missing}"
        raise UserError(f"{self.prog}: {message}; {self.prog} --help lists all options.")

    def _is_unknown(self, given: str) -> bool:
        name = given.split("=")[0]
        known = [o for o in self._option_string_actions if self.allow_abbrev or o == name]
        return name.startswith("--") and not any(option.startswith(name) for option in known)


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """A parser that knows the names of all commands and the options of the given one."""
    parser = _Parser(prog="cpo-ds", description="Tools around a cpo_ds run.")
    parser.add_argument("--version", action="version", version=f"cpo-ds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        is_given = argv[:1] == [name]
        # Recipe options must not be mistaken for abbreviations of a command's own options.
        _add_command(commands, name, command, is_given, may_abbreviate=not command.takes_recipe)

    about = "make preference pairs from source texts"
    prepare = commands.add_parser("prepare", help=about, description=f"{about}.")
    steps = prepare.add_subparsers(title="steps, in order", required=True, metavar="STEP")
    for name, step in PREPARE_STEPS.items():
        is_given = argv[:2] == ["prepare", name]
        _add_command(steps, name, step, is_given, may_abbreviate=False)
    return parser


def _add_command(
    parsers: Any, name: str, command: Command, is_given: bool, *, may_abbreviate: bool
) -> None:
    """Adds a command to the subparsers of argparse, with its options if it is the given one."""
    parser: _Parser = parsers.add_parser(
        name,
        help=command.about,
        description=f"{command.about}.",
        allow_abbrev=may_abbreviate,
    )
    if is_given:
        module = importlib.import_module(command.module)
        module.add_options(parser)
        parser.takes_recipe = command.takes_recipe
        parser.set_defaults(
            run_command=module.run, takes_recipe=command.takes_recipe, parser=parser
        )


if __name__ == "__main__":
    sys.exit(main())
