"""`cpo-ds prepare select`: picks preference pairs from rows with scores.

Writes the pairs in two formats, and a summary.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import CandidateRows, left_out, row_line
from cpo_ds.data.json_text import UNPAIRED
from cpo_ds.data.pair_scores import CHOSEN_SCORE, REJECTED_SCORE
from cpo_ds.data.prompts import Languages, alma_prompt, parse_direction, unnamed
from cpo_ds.data.selected import SELECTED_BY, metric_names
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs.alma_rows import AlmaFolder
from cpo_ds.prepare.pairs.choose import BEST_EACH, BEST_WORST, Pair, is_rule
from cpo_ds.prepare.pairs.filters import CONFIDENCE, check_confidence
from cpo_ds.prepare.pairs.metric_choice import add_metrics_option, joined_metrics
from cpo_ds.prepare.pairs.selection import Options, Selection, Summary, select, summarize
from cpo_ds.storage.files import replacing
from cpo_ds.storage.folders import check_replaceable, replacing_folder
from cpo_ds.translate.languages import LANGUAGE, add_language_option, all_languages, language_names

PAIRS, ALMA_ROWS, SUMMARY = "pairs.jsonl", "alma-r", "summary.json"
_OF_REJECTED = ("rejected", "rejected_system", REJECTED_SCORE, "margin")  # fields of a pair


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds prepare select`."""
    # Rows, and the choice of pairs.
    add = parser.add_argument
    add("--input", required=True, type=Path, help="rows with scores, jsonl")
    add(
        "--output",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="a new folder, or one of an earlier select",
    )
    add_metrics_option(
        parser, "metrics to average (kiwi+xcomet, the XXL models; else those that all rows have)"
    )
    add(
        "--pairs",
        choices=(BEST_WORST, BEST_EACH),
        help="the best against the worst, or against each other translation (best-worst)",
    )
    add(
        "--rejected",
        type=_rejected_rule,
        metavar="RULE",
        help="reject several translations of a source, as a list: worst, all, spread (three from "
        "the worst to the best), or a number, so many of the worst",
    )
    add(
        "--unroll",
        action="store_true",
        help="write a pair for each rejected translation, as other trainers take them",
    )

    _add_filters(parser)

    # How the pairs are written.
    add(
        "--prompt-style",
        choices=("alma", "chat"),
        default="alma",
        help="prompts as text, or as a user's turn for a chat template (alma)",
    )
    add_language_option(parser)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    """Declares the options that drop pairs."""
    add = parser.add_argument
    add(
        "--min-margin",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="drop pairs whose mean scores are closer (0)",
    )
    add("--directions", metavar="en-de,de-en", help="directions to keep (all)")
    add(
        "--check-language",
        **CONFIDENCE,
        help="drop pairs with a text in another language, by py3langid's probability (0.7), or "
        "with a copy of the source",
    )
    add(
        "--max-length-ratio",
        type=float,
        metavar="TIMES",
        help="drop pairs with a text that is so many times longer or shorter than usual",
    )


def _rejected_rule(text: str) -> str:
    """A value of `--rejected`. Raises `ArgumentTypeError`."""
    if is_rule(text):
        return text
    raise argparse.ArgumentTypeError(
        f"it is {text!r}; give worst, all, spread, or a number of translations"
    )


def run(arguments: argparse.Namespace) -> int:
    """Selects pairs and writes the folder; returns the exit code. Raises `UserError`."""
    # Read the rows a first time, before anything is written.
    options = _options(arguments)
    names = all_languages(arguments)
    check_replaceable(arguments.output, (PAIRS, ALMA_ROWS, SUMMARY), SUMMARY)
    rows = CandidateRows(str(arguments.input))
    selection = select(rows, options)

    # Write the folder, whole or not at all.
    with replacing_folder(arguments.output) as folder:
        as_lists = arguments.rejected is not None and not arguments.unroll
        lines, without_prompt = _write_pairs(folder, selection, options, names, as_lists)
        summary = summarize(selection)
        num_rows = selection.tally.rows
        if not summary["pairs"]:
            reasons = ", ".join(f"{reason}: {n}" for reason, n in summary["dropped"].items())
            raise UserError(
                f"{arguments.input}: no pair is left of {num_rows} rows (dropped: {reasons}); "
                "nothing was written."
            )
        record = {
            "input": str(arguments.input),
            "options": asdict(options),
            "rows": num_rows,
            "left_out": dict(rows.skipped.most_common()),
            **summary,
            "without_prompt": dict(without_prompt),
        } | ({"lines": lines} if as_lists else {})
        with replacing(folder / SUMMARY) as unfinished:
            text = json.dumps(record, ensure_ascii=False, indent=2)
            unfinished.write_text(text + "\n", encoding="utf-8", errors=UNPAIRED)

    # Print the counts.
    print("\n".join([*_lines(num_rows, summary), *left_out(rows.skipped)]))
    for direction, count in without_prompt.items():
        print(
            f"  left out of {PAIRS}, {direction}: {count}; a prompt needs the language's name: "
            f"{LANGUAGE} {unnamed(direction, names)}=NAME"
        )
    print(f"written to {arguments.output}: {PAIRS}, {ALMA_ROWS}, {SUMMARY}")
    if as_lists:
        print(
            f"  {PAIRS} has {lines} lines with a list of rejected texts; {ALMA_ROWS} cannot hold "
            "lists, and has a row for each of them"
        )
    return 0


def _write_pairs(
    folder: Path, selection: Selection, options: Options, names: Languages, as_lists: bool
) -> tuple[int, Counter[str]]:
    """Writes the pairs in both formats, row by row.

    Returns the number of lines of `PAIRS`, and the number of pairs by direction whose prompt would
    need a language without a name: `PAIRS` lacks them. Raises `UserError` or `OSError`.
    """
    without_prompt: Counter[str] = Counter()
    lines = 0
    alma = AlmaFolder(folder / ALMA_ROWS)
    with (
        replacing(folder / PAIRS) as unfinished,
        unfinished.open("w", encoding="utf-8", errors=UNPAIRED) as file,
    ):
        for _, group in itertools.groupby(selection.pairs, lambda pair: pair.rated.row.where):
            pairs = list(group)
            for pair in pairs:
                alma.add(pair)
            if unnamed(pairs[0].direction, names):
                without_prompt[pairs[0].direction] += len(pairs)
                continue
            rows = [pair_row(pair, options.prompt_style, names) for pair in pairs]
            rows = [_in_lists(rows)] if as_lists else rows
            lines += len(rows)
            for row in rows:
                file.write(row_line(row))
    alma.finish()
    return lines, without_prompt


def _in_lists(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of several that have the same chosen text, with lists in place of what differs."""
    differing = {name: [row[name] for row in rows] for name in _OF_REJECTED}
    return rows[0] | differing


def _options(arguments: argparse.Namespace) -> Options:
    """The options, checked. Raises `UserError`."""
    # Directions, each a pair of codes.
    directions = None
    if arguments.directions is not None:
        directions = tuple(part.strip() for part in arguments.directions.split(","))
        for direction in directions:
            try:
                parse_direction(direction)
            except UserError as error:
                raise UserError(f"--directions: {error}") from None

    # Options that exclude or need each other.
    if arguments.pairs and arguments.rejected:
        raise UserError("give --pairs or --rejected, not both.")
    if arguments.unroll and not arguments.rejected:
        raise UserError("--unroll needs --rejected; without it each pair has a line of its own.")

    # Numbers. Comparisons are written so that NaN fails them.
    if not arguments.min_margin >= 0:
        raise UserError(f"--min-margin is {arguments.min_margin}; give a number from 0.")
    ratio, confidence = arguments.max_length_ratio, arguments.check_language
    if ratio is not None and not ratio > 1:
        raise UserError(f"--max-length-ratio is {ratio}; give a number above 1, like 2.")
    check_confidence(confidence)
    return Options(
        pairs=arguments.rejected or arguments.pairs or BEST_WORST,
        metrics=joined_metrics(arguments),
        min_margin=arguments.min_margin,
        directions=directions,
        check_language=confidence,
        max_length_ratio=ratio,
        prompt_style=arguments.prompt_style,
        languages=language_names(arguments),
    )


def pair_row(pair: Pair, prompt_style: str, languages: Languages) -> dict[str, Any]:
    """A pair as TRL takes it: prompt, chosen and rejected, with their origin beside them."""
    prompt: Any = alma_prompt(pair.source, *parse_direction(pair.direction), languages)
    chosen: Any = pair.chosen
    rejected: Any = pair.rejected
    if prompt_style == "chat":
        prompt = [{"role": "user", "content": prompt}]
        chosen = [{"role": "assistant", "content": chosen}]
        rejected = [{"role": "assistant", "content": rejected}]
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "direction": pair.direction,
        "chosen_system": pair.chosen_system,
        "rejected_system": pair.rejected_system,
        CHOSEN_SCORE: pair.means and pair.means[0],
        REJECTED_SCORE: pair.means and pair.means[1],
        "margin": pair.margin,
        SELECTED_BY: selecting_metrics(pair),
    }


def selecting_metrics(pair: Pair) -> list[str]:
    """The metrics that selected a pair, by their models' names; none if a person did."""
    rated = pair.rated
    return [] if pair.is_human else metric_names(rated.scores, rated.row.values.get("scorers"))


def _lines(num_rows: int, summary: Summary) -> list[str]:
    """Lines to print on the summary."""
    by, because = " + ".join(summary["metrics"]) or "no metric", summary["metrics_because"]
    total = sum(summary["pairs"].values())
    counts = {
        "preferred by a person": summary["human_preferences"],
        **{f"dropped, {reason}": count for reason, count in summary["dropped"].items()},
        f"translations without a score by {by}": summary["unscored_translations"],
        "references left out, as a metric compares with them": summary["references_left_out"],
    }
    return [
        f"read {num_rows} rows, selected {total} pairs by {by}",
        *([f"  metrics taken: {by}, as {because}"] if because else []),
        *(
            f"  metric left out, {name}: {reason}"
            for name, reason in summary["metrics_left_out"].items()
        ),
        *(f"  {direction}: {count}" for direction, count in summary["pairs"].items()),
        f"  chosen: {_shares(summary['chosen'], total)}",
        f"  rejected: {_shares(summary['rejected'], total)}",
        *(f"  {label}: {count}" for label, count in counts.items() if count),
    ]


def _shares(by_direction: Mapping[str, Mapping[str, int]], total: int) -> str:
    """The share of each system in all directions together, the largest first."""
    names: Counter[str] = Counter()
    for counts in by_direction.values():
        names.update(counts)
    return ", ".join(f"{name} {count / total:.0%}" for name, count in names.most_common())
