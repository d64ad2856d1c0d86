"""`cpo-ds completion`: prints a script by which a shell completes commands, options and values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from cpo_ds.devices import DEVICES
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.recipe import SETTINGS, type_name
from cpo_ds.shipped import DEEPSPEED_FILES, RECIPES
from cpo_ds.start import completion_scripts

Words = dict[str, list[str]]
_SHELLS: Mapping[str, Callable[[Words, Words], str]] = {
    "bash": completion_scripts.bash,
    "zsh": completion_scripts.zsh,
    "fish": completion_scripts.fish,
}
_INSTALL = """\
bash: add to ~/.bashrc   source <(cpo-ds completion bash)
zsh:  add to ~/.zshrc    source <(cpo-ds completion zsh)      (below compinit)
fish: once               cpo-ds completion fish > ~/.config/fish/completions/cpo-ds.fish"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds completion`."""
    parser.epilog = _INSTALL
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", metavar="SHELL", help=f"one of {', '.join(_SHELLS)}")


def run(arguments: argparse.Namespace) -> int:
    """Prints the script; returns 0. Raises `UserError` for a shell that is not known."""
    if arguments.shell not in _SHELLS:
        hint = did_you_mean(arguments.shell, list(_SHELLS))
        raise UserError(
            f"there is no completion for {arguments.shell}{hint}; shells are {', '.join(_SHELLS)}."
        )
    after, values = words(arguments.all_commands())
    print(_SHELLS[arguments.shell](after, values), end="")
    return 0


def words(commands: Mapping[str, tuple[argparse.ArgumentParser, bool]]) -> tuple[Words, Words]:
    """The words that may follow each command, and those that may follow each of its options.

    `commands` are parsers by name, each with whether the command takes a recipe. The keys of the
    second dictionary are command and option, like `plan --device`. An option that is missing there
    takes a file, or a value that is not known beforehand.
    """
    after: Words = {"": ["--help", "--version"]}
    values: Words = {}
    for name, (parser, takes_recipe) in commands.items():
        _add(after, values, name, parser)
        if takes_recipe:
            _add_settings(after[name], values, name)
    after["recipes"] += RECIPES.names()
    after["completion"] += _SHELLS
    return after, values


def _add(after: Words, values: Words, name: str, parser: argparse.ArgumentParser) -> None:
    """Adds the words of a command, and those of its own commands."""
    parts = name.split()
    for number, part in enumerate(parts):  # each word follows those before it
        above = after.setdefault(" ".join(parts[:number]), [])
        above += [part] * (part not in above)
    words = after.setdefault(name, [])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, its_parser in action.choices.items():
                _add(after, values, f"{name} {below}", its_parser)
            continue
        options = [option for option in action.option_strings if option.startswith("--")]
        choices = list(DEVICES) if "--device" in options else list(map(str, action.choices or ()))
        words += options or choices
        values |= {f"{name} {option}": choices for option in options if choices}


def _add_settings(words: list[str], values: Words, name: str) -> None:
    """Adds a recipe and its fields to the words of a command."""
    words += [option for option in ("--config",) if option not in words]
    values[f"{name} --config"] = RECIPES.names()
    for dotted, field in SETTINGS.items():
        words.append(f"--{dotted}")
        if choices := _setting_choices(dotted, type_name(field)):
            values[f"{name} --{dotted}"] = choices


def _setting_choices(dotted: str, kind: str) -> list[str]:
    """The values of a recipe's field that are known beforehand."""
    if dotted == "deepspeed":
        return ["auto", *DEEPSPEED_FILES.names()]
    if kind == "bool":
        return ["true", "false"]
    parts = [part for text in kind.split(" or ") for part in text.split("|")]
    return [part for part in parts if part.isidentifier() or "-" in part] if "|" in kind else []
