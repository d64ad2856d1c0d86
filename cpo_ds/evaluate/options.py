"""Options of `cpo-ds evaluate`, and the checks of their values."""

from __future__ import annotations

import argparse
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.evaluate.neural import Computing
from cpo_ds.evaluate.significance import SAMPLES, Kind
from cpo_ds.storage.results import cache_of

OUTPUTS = ("json", "csv", "markdown", "latex", "picture")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds evaluate`."""
    # Rows, systems and metrics.
    add = parser.add_argument
    add("--input", type=Path, metavar="ROWS.jsonl", help="rows with candidates")
    add(
        "--system",
        action="append",
        dest="systems",
        metavar="NAME",
        help="a system to evaluate (all of them); repeat the option for more",
    )
    add(
        "--metric",
        action="append",
        dest="metrics",
        metavar="NAME",
        help="bleu, chrf, comet-22, kiwi-22, kiwi, xcomet, or another metric of prepare score, "
        "or one that the rows have scores by; repeat the option for more",
    )
    add("--published", action="store_true", help="show published scores of well-known systems too")

    # Differences.
    for test, name in (("bs", "paired bootstrap resampling"), ("ar", "approximate randomization")):
        add(f"--paired-{test}", action="store_true", help=f"test differences by {name}")
        add(
            f"--paired-{test}-n",
            type=int,
            default=SAMPLES[test],
            metavar="NUMBER",
            help=f"draws of --paired-{test} ({SAMPLES[test]})",
        )
    add("--baseline", metavar="NAME", help="the system to compare others with (the first)")

    _add_guard(parser)
    _add_scoring(parser)

    # Files to write besides the tables on the console, or a file to check.
    add("--json", type=Path, metavar="FILE", help="every number with its signature")
    add("--csv", type=Path, metavar="FILE", help="the same numbers, one a line")
    add("--markdown", type=Path, metavar="FILE", help="the tables for Markdown")
    add("--latex", type=Path, metavar="FILE", help="the tables for LaTeX (booktabs)")
    add("--picture", type=Path, metavar="FILE.png", help="a picture of the scores")
    add(
        "--verify",
        type=Path,
        metavar="FILE",
        help="compute the numbers of a --json file again, and say what differs",
    )


def _add_guard(parser: argparse.ArgumentParser) -> None:
    """Declares the options on the metrics that selected training pairs."""
    add = parser.add_argument
    add(
        "--trained-by",
        action="append",
        default=[],
        metavar="[SYSTEM=]FOLDER",
        help="the run, export or pairs that a system was trained by (all systems, without a name): "
        "metrics that selected these pairs are marked, and kept out of the headline",
    )
    add(
        "--selected-by",
        action="append",
        default=[],
        metavar="[SYSTEM=]METRICS",
        help="the same, if no folder tells: metrics joined by +, like kiwi+xcomet",
    )


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    """Declares the options of scores that are made anew, as in `cpo-ds prepare score`."""
    add = parser.add_argument
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision of neural metrics (float32)",
    )
    add("--use-reference", action="store_true", help="show the reference to XCOMET and its like")
    add("--shard", action="store_true", help="split each neural metric over the ranks (ZeRO-3)")
    add("--ranks", type=int, metavar="NUMBER", help="processes for neural metrics (1)")
    add("--hostfile", help="hosts and slots, in place of --ranks")
    add("--batch-tokens", type=int, metavar="NUMBER", help="tokens of a batch (4096)")
    add("--cache", type=Path, help="folder that keeps finished scores (JSON.cache, if any)")


def computing(arguments: argparse.Namespace) -> Computing:
    """The options for `cpo-ds prepare score`."""
    options: list[str] = []
    for name in ("dtype", "ranks", "hostfile", "batch_tokens"):
        if (value := getattr(arguments, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    for name in ("use_reference", "shard"):
        if getattr(arguments, name):
            options.append(f"--{name.replace('_', '-')}")
    cache = arguments.cache or (cache_of(arguments.json) if arguments.json else None)
    return Computing(tuple(options), cache and cache.absolute())


def tests_of(arguments: argparse.Namespace) -> tuple[Kind, ...]:
    """The paired tests that are asked for. Raises `UserError` for too few draws."""
    kinds = [
        Kind(test, getattr(arguments, f"paired_{test}_n"))
        for test in SAMPLES
        if getattr(arguments, f"paired_{test}")
    ]
    for kind in kinds:
        if kind.samples < 100:
            raise UserError(f"--paired-{kind.test}-n is {kind.samples}; give a number from 100.")
    return tuple(kinds)


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for a file that cannot be written, before the work begins."""
    if arguments.picture is not None and arguments.picture.suffix.lower() != ".png":
        raise UserError(f"--picture {arguments.picture} does not end in .png; name it so.")
    taken = {arguments.input.resolve(): "--input"}
    for name in OUTPUTS:
        path = getattr(arguments, name)
        if path is None:
            continue
        if path.is_dir():
            raise UserError(f"--{name} {path} is a folder; name a file to write.")
        if path.resolve() in taken:
            raise UserError(
                f"--{name} {path} is the file of {taken[path.resolve()]} too; name another."
            )
        taken[path.resolve()] = f"--{name}"
