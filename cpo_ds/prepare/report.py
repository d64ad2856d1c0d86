"""`cpo-ds prepare report`: analyses of scored rows, as one HTML file and a few lines of text."""

from __future__ import annotations

import argparse
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.prepare.analyses.agreement_section import agreement
from cpo_ds.prepare.analyses.bias_section import bias
from cpo_ds.prepare.analyses.choices_section import where_choices_come_from
from cpo_ds.prepare.analyses.distributions_section import distributions
from cpo_ds.prepare.analyses.page import Section, render
from cpo_ds.prepare.analyses.reference_section import gold_or_gilded
from cpo_ds.prepare.analyses.scored import read_scored
from cpo_ds.prepare.analyses.scores_section import about_scores
from cpo_ds.prepare.analyses.view import make_view, selecting_metrics
from cpo_ds.storage.files import writing


def run(arguments: argparse.Namespace) -> int:
    """Writes the page; returns the exit code. Raises `UserError`."""
    path, output = arguments.input, arguments.output
    if output.is_dir() or output.resolve() == path.resolve():
        raise UserError(f"--output {output} is not free; name a file to write the page to.")
    sections = analyse(str(path), arguments.metrics)
    page = render(f"Scores and choices in {path.name}", sections).encode()
    with writing(output) as unfinished:
        unfinished.write_bytes(page)
    for section in sections:
        print(section.title)
        for text in section.findings or section.explanation:
            print(f"  {text}")
        for note in section.notes:
            print(f"  - {note}")
    print(f"written to {output} ({len(page) / 2**20:.1f} MiB)")
    return 0


def analyse(path: str, metrics: str | None) -> tuple[Section, ...]:
    """The report's sections; `metrics`, like `kiwi+xcomet`, choose. Raises `UserError`."""
    scored = read_scored(path)
    view = make_view(scored, selecting_metrics(scored, metrics))
    return (
        about_scores(view, Path(path).name),
        gold_or_gilded(view),
        where_choices_come_from(view),
        distributions(view),
        agreement(view),
        bias(view),
    )
