"""`cpo-ds prepare candidates`: sources -> the same rows with translations by another system."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from cpo_ds.data.candidates import REFERENCE, write_rows
from cpo_ds.errors import UserError
from cpo_ds.prepare.translation.job import counted, sources_read, summary, with_candidates
from cpo_ds.prepare.translation.lines import Sources, read_aligned, read_sources

# Which options do something, by where translations come from.
_OF_ANY_MODEL = {"model", "name", "prompt", "examples", "shots", "max_new_tokens", "temperature"}
_OF_ANY_MODEL |= {"top_p", "seed"}
_EFFECTIVE = {
    "--system": {"systems"},
    "--model": _OF_ANY_MODEL | {"adapter", "dtype", "beams", "batch_tokens", "ranks", "hostfile"},
    "--server": _OF_ANY_MODEL | {"server", "key_variable", "concurrency", "retries", "timeout"},
}
_AT_LEAST: dict[str, float] = {
    "shots": 1, "max_new_tokens": 1, "beams": 1, "batch_tokens": 1, "ranks": 1, "concurrency": 1,
    "retries": 0, "temperature": 0, "top_p": 0, "timeout": 0,
}  # fmt: skip
_ABOVE = {"top_p", "timeout"}  # for these the bound itself is too small


def run(arguments: argparse.Namespace) -> int:
    """Translates, or reads translations; returns the exit code. Raises `UserError`."""
    origin = _origin(arguments)
    _check(arguments, origin)
    if origin == "--system":
        return _read_systems(arguments)
    if origin == "--server":
        from cpo_ds.prepare.translation.server import translate
    else:
        from cpo_ds.prepare.translation.generate import translate
    return translate(arguments, _system_name(arguments))


def _origin(arguments: argparse.Namespace) -> str:
    if arguments.systems and (arguments.model or arguments.server is not None):
        raise UserError("give either --system or --model, not both: one source of translations.")
    if arguments.server is not None and not arguments.model:
        raise UserError("--server needs --model, the name of a model that it serves.")
    if arguments.server is not None:
        return "--server"
    if arguments.model:
        return "--model"
    if arguments.systems:
        return "--system"
    raise UserError(
        "say where translations come from: --system NAME=FILE, --model NAME_OR_PATH, or --server "
        "URL --model NAME."
    )


def _check(arguments: argparse.Namespace, origin: str) -> None:
    given = {key for key, value in vars(arguments).items() if value is not None}
    if arguments.ranks == 1:  # its default
        given.discard("ranks")
    for option in set().union(*_EFFECTIVE.values()) - _EFFECTIVE[origin]:
        if option in given:
            where = f"with {origin}" if origin != "--model" else "without --server"
            raise UserError(f"{_spelled(option)} has no effect {where}; leave it out.")
    for option, least in _AT_LEAST.items():
        value = getattr(arguments, option)
        if value is not None and (value < least or (value == least and option in _ABOVE)):
            above = "above" if option in _ABOVE else "of at least"
            raise UserError(f"{_spelled(option)} is {value:g}; give a number {above} {least:g}.")
    if arguments.top_p is not None and arguments.top_p > 1:
        raise UserError(f"--top-p is {arguments.top_p:g}; give a number up to 1.")
    _check_output(arguments.input, arguments.output)


def _spelled(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _check_output(source: Path, output: Path) -> None:
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output} must end in .jsonl, for the next step to read it.")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file.")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(
            f"--output {output} is the input; choose another file, so that the same command can be "
            "given again."
        )


def _system_name(arguments: argparse.Namespace) -> str:
    """The name in the output: by default the last parts of model's and adapter's names."""
    parts = [part for part in (arguments.model, getattr(arguments, "adapter", None)) if part]
    name = arguments.name or "+".join(Path(part).name for part in parts)
    return _checked_name(name, "--name")


def _checked_name(name: str, option: str) -> str:
    if not name.strip():
        raise UserError(f"{option} gives the system no name; give it one.")
    if name == REFERENCE:
        raise UserError(f"{option}: {REFERENCE} is what a row's own reference is called.")
    return name


def _read_systems(arguments: argparse.Namespace) -> int:
    """Adds what files of existing systems hold, a line each."""
    sources = read_sources(arguments.input, arguments.language_pair, arguments.references)
    texts: dict[str, list[str | None]] = {}
    lines = []
    for given in arguments.systems:
        name, equals, file = given.partition("=")
        if not equals or not file:
            raise UserError(f"--system {given}: write NAME=FILE.")
        if _checked_name(name, f"--system {given}") in texts:
            raise UserError(f"--system {given}: there is a system {name} already; rename one.")
        counts: Counter[str] = Counter()
        texts[name] = _system(name, Path(file), sources, counts)
        lines += [summary(arguments.output, name, texts[name]), *counted(counts)]
    write_rows(arguments.output, with_candidates(sources.rows, texts))
    print("\n".join([*sources_read(sources), *lines]))
    return 0


def _system(name: str, file: Path, sources: Sources, counts: Counter[str]) -> list[str | None]:
    texts: list[str | None] = []
    for row, line in zip(sources.rows, read_aligned(file, sources), strict=True):
        text = line.strip()
        counts["cleaned, spaces around it removed"] += bool(text) and text != line
        counts["no translation, empty line"] += not text
        if text and row.candidates.get(name, text) != text:
            raise UserError(
                f"{row.where}: there is another candidate of {name} already, not that of {file}; "
                "give the system another name."
            )
        texts.append(text or None)
    return texts
