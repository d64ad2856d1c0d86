"""Reads the command that a shell script starts, without running anything."""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

from cpo_ds.errors import UserError, one_line


class ShellCommand(NamedTuple):
    """The options of a script's training command, by names with underscores.

    An option without a value is True, one with several values a list.
    """

    options: dict[str, Any]
    launcher: dict[str, Any]  # the options before the Python script, and variables before all
    files: list[str]  # YAML and JSON files that stand without an option
    others: list[str]  # the beginnings of other commands with options
    unknown: dict[str, str]  # options whose values are known only when the script runs


def read_command(text: str, name: str) -> ShellCommand:
    """The command of a script that has the most options.

    Variables and their defaults, like `${1:-runs}`, are put in if the script sets them. Raises
    `UserError` for a script without options, and for quotes that do not close.
    """
    variables: dict[str, str] = {}
    commands = []
    joined = re.sub(r"\\[ \t]*(\r?\n|$)", " ", _without_arrays(text))
    for number, line in enumerate(joined.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        for words in _statements(line, f"{name}, command on line {number}"):
            words = [part for word in words for part in _expanded(word, variables)]
            own = _assignments(words)
            if len(own) == len(words):
                variables |= own
            elif any(word.startswith("--") or _is_file(word) for word in words[1:] or words):
                commands.append((words[len(own) :], own))
    if not commands:
        raise UserError(
            f"{name} starts no command with options like --learning_rate 1e-4; give the script "
            "that starts the training, or a YAML or JSON file of its settings."
        )
    chosen = max(commands, key=lambda one: sum(word.startswith("--") for word in one[0]))
    others = [" ".join(words[:3]) for words, _ in commands if words is not chosen[0]]
    return _as_command(*chosen, others)


def _statements(line: str, origin: str) -> list[list[str]]:
    """The words of each command of a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError as error:
        raise UserError(
            f"{origin}: {one_line(error)}; close the quotes, or write the training command into a "
            "file of its own."
        ) from None
    statements: list[list[str]] = [[]]
    for word in words:
        if word and set(word) <= set(";&|"):
            statements.append([])
        elif word != "export" or statements[-1]:
            statements[-1].append(word)
    return [statement for statement in statements if statement]


def _without_arrays(text: str) -> str:
    """The text with arrays, `NAME=(--option value)`, as variables of one line."""

    def line(match: re.Match[str]) -> str:
        values = re.sub(r"(?m)^\s*#.*$|\s#.*$", "", match[3]).replace('"', "'")
        return f'{match[1]}{match[2]}="{" ".join(values.split())}"'

    text = re.sub(r"(?m)^([ \t]*)([A-Za-z_]\w*)=\(([^()]*)\)", line, text)
    return re.sub(r"\$\{(\w+)\[[@*]\]\}", r"${\1}", text)


def _expanded(word: str, variables: dict[str, str]) -> list[str]:
    """A word with the values of variables, and with the defaults of those that are not set.

    A variable that holds options gives several words.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2]
        if name in variables:
            return variables[name]
        return match[0] if default is None else default

    expanded = re.sub(r"\$(?:\{(\w+)(?::?-([^{}]*))?\}|(\w+))", value, word)
    if word.startswith("$") and expanded.lstrip().startswith("--"):
        try:
            return shlex.split(expanded)
        except ValueError:
            return expanded.split()
    return [expanded]


def _is_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml", ".json"))


def _assignments(words: list[str]) -> dict[str, str]:
    """The variables that are set at the beginning of a command."""
    values = {}
    for word in words:
        match = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", word, re.DOTALL)
        if match is None:
            break
        values[match[1]] = match[2]
    return values


def _as_command(words: list[str], variables: dict[str, str], others: list[str]) -> ShellCommand:
    """The command with the launcher's options apart from those of the script that it launches."""
    start = _script_end(words)
    options, files = _options(words[start:])
    launcher, _ = _options(words[: max(start - 1, 0)])  # without the script's name
    unknown = {key: value for key, value in options.items() if _is_unknown(value)}
    options = {key: value for key, value in options.items() if key not in unknown}
    launcher = {key: value for key, value in launcher.items() if not _is_unknown(value)}
    variables = {key: value for key, value in variables.items() if not _is_unknown(value)}
    return ShellCommand(options, launcher | variables, files, others, unknown)


def _script_end(words: list[str]) -> int:
    """The index of the first word after the script or subcommand; 0 if there is none."""
    for index, word in enumerate(words):
        if word.endswith(".py"):
            return index + 1
        if word.rpartition("/")[2] in ("trl", "llamafactory-cli") and index + 1 < len(words):
            return index + 2
        if word == "-m" and words[index + 1 : index + 2]:
            module = words[index + 1]
            if not module.startswith(("torch.distributed", "accelerate", "deepspeed")):
                return index + 2
    return 0


def _options(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Options with their values, and the configuration files that stand before all options."""
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    files = [word for word in words[:first] if _is_file(word)]
    options: dict[str, Any] = _assignments(words[len(files) : first])  # as LLaMA-Factory takes them
    values: list[str] = []
    name = ""
    for word in [*words[first:], "--"]:
        if not word.startswith("--"):
            values.append(word)
            continue
        if name:
            options[name] = values[0] if len(values) == 1 else values or True
        name, is_joined, value = word[2:].partition("=")
        name, values = name.replace("-", "_"), [value] if is_joined else []
    return options, files


def _is_unknown(value: Any) -> bool:
    """Whether a value holds a variable or a command that only a shell can put in."""
    return any(
        "$" in text or "`" in text
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str)
    )
