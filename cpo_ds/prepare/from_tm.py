"""`cpo-ds prepare from-tm`: pairs of a translation memory's targets and drafts of them.

The translation that people approved is chosen, a draft rejected: that of the model to train (as in
arXiv 2510.27556), or the machine's that was post-edited. Given a memory, the command writes rows
that `cpo-ds prepare candidates` adds drafts to; given rows with drafts, it writes pairs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from cpo_ds.data.prompts import parse_direction
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.prepare.memory.cleaning import (
    Problem,
    Tally,
    clean,
    duplicate_problem,
    is_held_out,
    language_problem,
    limited,
    notes_of,
    problem_of_placeholders,
    problem_of_texts,
)
from cpo_ds.prepare.memory.draft_pairs import PairOptions, pairs_of, seen_drafts
from cpo_ds.prepare.memory.folder import FILES, SUMMARY, Result, codes_of, told, write_folder
from cpo_ds.prepare.memory.reading import Reading, units_of
from cpo_ds.prepare.memory.table_units import COLUMNS
from cpo_ds.prepare.memory.unit import Unit
from cpo_ds.prepare.pairs.filters import CONFIDENCE, check_confidence
from cpo_ds.storage.folders import check_replaceable
from cpo_ds.translate.languages import add_language_option, all_languages

HELD_OUT_SHARE, SEED = 0.05, 42  # defaults
_RECORDED = (  # options in summary.json
    "language_pair",
    "columns",
    "tags",
    "check_language",
    "limit",
    "held_out",
    "seed",
    "drafts",
    "noise",
    "max_chrf",
    "prompt_style",
    "label",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds prepare from-tm`."""
    # The memory, and what is read of it.
    add = parser.add_argument
    add(
        "--input",
        required=True,
        type=Path,
        help="a memory: TMX, XLIFF, csv, tsv, jsonl or parquet, or a folder of them; or rows with "
        "drafts",
    )
    add(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="a new folder, or one of an earlier from-tm",
    )
    add("--language-pair", metavar="en-de", help="the direction; rows may name their own")
    add(
        "--columns",
        metavar="source=NAME,...",
        default="",
        help="columns of a table that are not called source, target or draft",
    )
    add(
        "--tags",
        choices=("keep", "drop"),
        default="keep",
        help="inline tags of TMX and XLIFF: as text, the same in source and target, or left out "
        "(keep)",
    )
    add(
        "--check-language",
        **CONFIDENCE,
        help="drop texts in another language, by py3langid's probability (0.7)",
    )
    _add_pair_options(parser)


def _add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the split and of the pairs."""
    add = parser.add_argument
    add("--limit", type=int, metavar="N", help="keep at most N segments, drawn at random (all)")
    add(
        "--held-out",
        type=float,
        default=HELD_OUT_SHARE,
        metavar="SHARE",
        help="share of the sources to hold out (0.05)",
    )
    add("--seed", type=int, default=SEED, help="decides what is drawn and held out (42)")
    add(
        "--drafts",
        action="append",
        metavar="NAME",
        help="the draft to reject (all); repeat the option for more",
    )
    add(
        "--noise",
        action="store_true",
        help="reject a noised copy of the target if there is no draft",
    )
    add(
        "--max-chrf",
        type=float,
        default=95.0,
        metavar="SCORE",
        help="drop drafts that are nearer to the target, from 0 to 100 (95)",
    )
    add(
        "--prompt-style",
        choices=("alma", "chat"),
        default="alma",
        help="prompts as text, or as a user's turn for a chat template (alma)",
    )
    add(
        "--label",
        metavar="NAME",
        help="added to the direction of pairs, as in en-de_NAME, so that metrics of held-out pairs "
        "tell this text from other text",
    )
    add_language_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder and prints the counts; returns the exit code. Raises `UserError`."""
    # Everything is read and checked before anything is written.
    reading, options = _reading(arguments), _pair_options(arguments)
    check_replaceable(arguments.output, FILES, SUMMARY)
    units, number_read, dropped = _clean_units(arguments, reading)
    names = seen_drafts(units)
    _check_drafts(options, names)
    held_out, rest = _split(arguments, units)

    # The pairs, if there is something to reject.
    without_pair = Tally()
    pairs, held_out_pairs = [], []
    with_pairs = bool(names) or options.noise
    if with_pairs:
        pairs = list(pairs_of(rest, options, without_pair))
        held_out_pairs = list(pairs_of(held_out, options, without_pair))
        if not pairs:
            reasons = "; ".join(line.strip() for line in without_pair.lines("no pair, "))
            raise UserError(
                f"{arguments.input}: no pair is left of {len(rest)} rows ({reasons}); nothing was "
                "written."
            )

    result = Result(
        read=number_read,
        rows=units,
        held_out=held_out,
        pairs=pairs,
        held_out_pairs=held_out_pairs,
        dropped=dropped,
        notes=notes_of(units),
        without_pair=without_pair,
        seen=reading.seen,
    )
    given = {name: getattr(arguments, name) for name in _RECORDED}
    written = write_folder(arguments.output, arguments.input, given, result)
    again = _options_of_the_split(arguments)
    print("\n".join(told(arguments.output, result, written, with_pairs=with_pairs, again=again)))
    return 0


def _options_of_the_split(arguments: argparse.Namespace) -> str:
    """The given options by which rows with drafts are split as the memory was."""
    given = {"--held-out": arguments.held_out, "--seed": arguments.seed}
    usual = {"--held-out": HELD_OUT_SHARE, "--seed": SEED}
    return "".join(f" {name} {value:g}" for name, value in given.items() if value != usual[name])


def _clean_units(arguments: argparse.Namespace, reading: Reading) -> tuple[list[Unit], int, Tally]:
    """The units that are left, the number that was read, and those dropped. Raises `UserError`."""
    all_units = list(units_of(arguments.input, reading))
    problems: list[Problem] = [problem_of_texts, problem_of_placeholders]
    if arguments.check_language is not None:
        directions = {unit.language_pair for unit in all_units if unit.language_pair}
        problems.append(language_problem(arguments.check_language, sorted(directions)))
    dropped = Tally()
    units = clean(all_units, [*problems, duplicate_problem()], dropped)
    if not units:
        reasons = "; ".join(line.strip() for line in dropped.lines("dropped, "))
        raise UserError(
            f"{arguments.input}: no segment is left of {len(all_units)} "
            f"({reasons or 'the file has none'}; languages of its texts: {codes_of(reading.seen)}"
            "); nothing was written."
        )
    return limited(units, arguments.limit, arguments.seed, dropped), len(all_units), dropped


def _split(arguments: argparse.Namespace, units: list[Unit]) -> tuple[list[Unit], list[Unit]]:
    """The units to hold out and the others. Raises `UserError` if one side is empty."""
    held_out: list[Unit] = []
    rest: list[Unit] = []
    for unit in units:
        is_held = is_held_out(unit, arguments.held_out, arguments.seed)
        (held_out if is_held else rest).append(unit)
    if arguments.held_out and not (held_out and rest):
        side = "all rows are" if held_out else "no row is"
        raise UserError(
            f"--held-out {arguments.held_out:g}: {side} held out of {len(units)}; change the share "
            "or the --seed, or give --held-out 0 and hold out text of your own."
        )
    return held_out, rest


# Options.


def _reading(arguments: argparse.Namespace) -> Reading:
    """How the memory is to be read. Raises `UserError`."""
    if arguments.language_pair is not None:
        try:
            parse_direction(arguments.language_pair)
        except UserError as error:
            raise UserError(f"--language-pair: {error}") from None
    columns = {}
    for part in filter(None, (part.strip() for part in arguments.columns.split(","))):
        what, _, name = part.partition("=")
        if what not in COLUMNS or not name:
            raise UserError(
                f"--columns: {part!r} is not like source=NAME; what a column can be: "
                f"{', '.join(COLUMNS)}."
            )
        columns[what] = name
    return Reading(arguments.language_pair, columns, arguments.tags == "keep")


def _pair_options(arguments: argparse.Namespace) -> PairOptions:
    """The options of pairs, checked. Raises `UserError`."""
    # Comparisons are written so that NaN fails them.
    if not 0 <= arguments.held_out < 1:
        raise UserError(f"--held-out is {arguments.held_out}; give a share from 0 to below 1.")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit is {arguments.limit}; give 1 or more, or leave it out.")
    if not 0 < arguments.max_chrf <= 100:
        raise UserError(f"--max-chrf is {arguments.max_chrf}; give a score up to 100, like 95.")
    if arguments.label is not None and not re.fullmatch("[A-Za-z0-9]+", arguments.label):
        raise UserError(f"--label is {arguments.label!r}; give a name of letters and digits.")
    check_confidence(arguments.check_language)
    return PairOptions(
        drafts=arguments.drafts,
        max_chrf=arguments.max_chrf,
        noise=arguments.noise,
        seed=arguments.seed,
        prompt_style=arguments.prompt_style,
        languages=all_languages(arguments),
        label=arguments.label,
    )


def _check_drafts(options: PairOptions, names: Sequence[str]) -> None:
    """Raises `UserError` if a draft was asked for that no row has."""
    for name in options.drafts or ():
        if name not in names:
            hint = did_you_mean(name, names) or f"; the rows have: {', '.join(names) or 'none'}"
            raise UserError(f"--drafts: no row has a draft of {name!r}{hint}.")
