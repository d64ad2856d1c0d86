"""`cpo-ds prepare report`: analyses scored rows in one HTML file and a few lines of text."""

from __future__ import annotations

import argparse
from pathlib import Path

from cpo_ds.data.json_text import UNPAIRED
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs.metric_choice import add_metrics_option, joined_metrics
from cpo_ds.storage.files import writing


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds prepare report`."""
    add = parser.add_argument
    add("--input", required=True, type=Path, help="rows with scores, jsonl")
    add("--output", required=True, type=Path, help="the page to write, HTML")
    add_metrics_option(
        parser, "choose by the mean of these (all that do not compare with the reference)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints its findings; returns the exit code. Raises `UserError`."""
    # Imported late: the charts need numpy and matplotlib, which take a second to import.
    from cpo_ds.prepare.analyses.sections import analyse
    from cpo_ds.report.page import render

    # Refuse an output that would replace the input, before the work begins.
    path, output = arguments.input, arguments.output
    is_input = output.exists() and path.exists() and output.samefile(path)
    if output.is_dir() or is_input:
        raise UserError(f"--output {output} is not free; name a file to write the page to.")

    # The page is written whole or not at all.
    sections = analyse(path, joined_metrics(arguments))
    page = render(f"Scores and choices in {path.name}", sections).encode(errors=UNPAIRED)
    with writing(output) as unfinished:
        unfinished.write_bytes(page)

    # The terminal gets the sentences, not the tables.
    for section in sections:
        print(section.title)
        for text in section.findings or section.explanation:
            print(f"  {text}")
        for note in section.notes:
            print(f"  - {note}")
    print(f"written to {output} ({len(page) / 2**20:.1f} MiB)")
    return 0
