"""`cpo-ds evaluate`: scores translations of several systems, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.evaluate.lexical import score_direction, tokenizer_of
from cpo_ds.evaluate.report import Report
from cpo_ds.evaluate.results import Result, means
from cpo_ds.evaluate.rows import Direction, read_directions
from cpo_ds.evaluate.tables import as_latex, as_markdown, as_text, tables_of
from cpo_ds.scoring.metrics import Metric, parse_metrics
from cpo_ds.storage.files import writing


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds evaluate`."""
    # Rows, systems and metrics.
    add = parser.add_argument
    add("--input", required=True, type=Path, metavar="ROWS.jsonl", help="rows with candidates")
    add(
        "--system",
        action="append",
        dest="systems",
        metavar="NAME",
        help="a system to evaluate (all of them); repeat the option for more",
    )
    add(
        "--metric",
        required=True,
        action="append",
        dest="metrics",
        metavar="NAME",
        help="bleu or chrf; repeat the option for more",
    )

    # Files to write besides the table on the console.
    add("--json", type=Path, metavar="FILE", help="every number with its signature")
    add("--csv", type=Path, metavar="FILE", help="the same numbers, one a line")
    add("--markdown", type=Path, metavar="FILE", help="the tables for Markdown")
    add("--latex", type=Path, metavar="FILE", help="the tables for LaTeX (booktabs)")
    add("--picture", type=Path, metavar="FILE.png", help="a picture of the scores")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates and writes the files; returns the exit code. Raises `UserError`."""
    metrics = parse_metrics(arguments.metrics)
    _check_outputs(arguments)
    directions = read_directions(str(arguments.input), arguments.systems)
    report = evaluate(directions, metrics)
    _write(arguments, report)
    return 0


def evaluate(directions: list[Direction], metrics: list[Metric]) -> Report:
    """Scores every system in every direction by every metric. Raises `UserError`."""
    results: list[Result] = []
    notes: list[str] = []
    for metric in metrics:
        _check_references(metric, directions)
        for direction in directions:
            tokenizer = tokenizer_of(direction.target)
            if tokenizer.note and metric.model == "bleu":
                notes.append(tokenizer.note)
            results += score_direction(metric.model, direction, tokenizer.name)
    of_directions, mean_notes = means(results, [d.language_pair for d in directions])
    headline = tuple(metric.name for metric in metrics)
    return Report(results + of_directions, headline, list(dict.fromkeys(notes + mean_notes)))


def _check_references(metric: Metric, directions: list[Direction]) -> None:
    """Raises `UserError` if a metric that compares with references misses one."""
    for direction in directions:
        for row in direction.rows:
            if row.reference is None:
                raise UserError(
                    f"--metric {metric.name} compares with references, and {row.where} has none; "
                    'add "reference" to every row, or take a metric that needs none, like '
                    "kiwi-22."
                )


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for a file that cannot be written, before the work begins."""
    given = [
        ("--json", arguments.json),
        ("--csv", arguments.csv),
        ("--markdown", arguments.markdown),
        ("--latex", arguments.latex),
        ("--picture", arguments.picture),
    ]
    taken = {arguments.input.resolve(): "--input"}
    for option, path in given:
        if path is None:
            continue
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; name a file to write.")
        if path.resolve() in taken:
            raise UserError(
                f"{option} {path} is the file of {taken[path.resolve()]} too; name another."
            )
        taken[path.resolve()] = option


def _write(arguments: argparse.Namespace, report: Report) -> None:
    """Prints the tables and writes the files. Raises `UserError` if one cannot be written."""
    tables = tables_of(report)
    print("\n\n".join(map(as_text, tables)))
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    texts: list[tuple[Path | None, Callable[[], str]]] = [
        (arguments.json, report.as_json),
        (arguments.csv, report.as_csv),
        (arguments.markdown, lambda: as_markdown(tables, report.notes)),
        (arguments.latex, lambda: as_latex(tables, report.notes)),
    ]
    for path, text in texts:
        if path is not None:
            with writing(path) as unfinished:
                unfinished.write_text(text(), encoding="utf-8")
    if arguments.picture is not None:
        from cpo_ds.evaluate.picture import draw  # here, since it takes a second to import

        draw(report, arguments.picture)
