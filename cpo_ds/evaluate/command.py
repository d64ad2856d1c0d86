"""`cpo-ds evaluate`: scores translations of several systems, side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.evaluate import options
from cpo_ds.evaluate.differences import difference_tables
from cpo_ds.evaluate.evaluation import Plan, evaluate, metrics_of
from cpo_ds.evaluate.published import published_rows, published_tables
from cpo_ds.evaluate.report import Report
from cpo_ds.evaluate.rows import read_directions
from cpo_ds.evaluate.tables import Table, as_latex, as_markdown, as_text, tables_of
from cpo_ds.evaluate.trained_by import selected_metrics
from cpo_ds.evaluate.verify import shown, verify
from cpo_ds.storage.files import writing

add_options = options.add_options


def run(arguments: argparse.Namespace) -> int:
    """Evaluates and writes the files, or verifies one; returns the exit code.

    The code is 2 if a verified file differs. Raises `UserError`.
    """
    if arguments.verify is not None:
        if arguments.metrics or arguments.systems:
            raise UserError("--verify takes metrics and systems from its file; leave them out.")
        return _verify(arguments)
    if arguments.input is None or not arguments.metrics:
        raise UserError("give rows by --input and at least one --metric, like --metric chrf.")
    options.check_outputs(arguments)
    tests = options.tests_of(arguments)

    # Score, compare, and see which metrics may be believed.
    directions = read_directions(str(arguments.input), arguments.systems)
    metrics = metrics_of(arguments.metrics, directions)
    systems = list(dict.fromkeys(s for d in directions for s in d.systems))
    selected, notes = selected_metrics(
        arguments.input, arguments.trained_by, arguments.selected_by, systems
    )
    plan = Plan(metrics, selected, tests, arguments.baseline, options.computing(arguments))
    report = evaluate(directions, plan)
    published = published_rows(metrics) if arguments.published else []
    more = {"input": str(arguments.input), **report.more}
    if arguments.published:
        more["published"] = published
    report = Report(report.results, report.headline, [*notes, *report.notes], more)

    differences = difference_tables(report.more["significance"], report.headline)
    _write(arguments, report, [*tables_of(report), *differences, *published_tables(published)])
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    number, lines = verify(arguments.verify, arguments.input, options.computing(arguments))
    if not lines:
        print(f"{arguments.verify}: all {number} numbers were computed again and are equal")
        return 0
    print(f"{arguments.verify} differs from what was computed again:", file=sys.stderr)
    print("\n".join(f"  {line}" for line in shown(lines)), file=sys.stderr)
    return EXIT_USER_ERROR


def _write(arguments: argparse.Namespace, report: Report, tables: list[Table]) -> None:
    """Writes the files and prints the tables. Raises `UserError` if one cannot be written."""
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
    # Printed last: a reader such as `head` may close the console's pipe.
    print("\n\n".join(map(as_text, tables)))
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
