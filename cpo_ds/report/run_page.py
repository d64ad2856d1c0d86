"""The page of one or several runs."""

from __future__ import annotations

from collections.abc import Sequence

from cpo_ds.report.curves_section import curves_section
from cpo_ds.report.directions_section import directions_section
from cpo_ds.report.overview_section import overview_section
from cpo_ds.report.page import join_names, render
from cpo_ds.report.pairs_section import pairs_section
from cpo_ds.report.run_folder import RunFolder
from cpo_ds.report.samples_section import samples_section
from cpo_ds.report.settings_section import data_section, settings_section


def run_page(runs: Sequence[RunFolder]) -> str:
    """The page as HTML; sections that no run has anything for are left out."""
    sections = (
        overview_section(runs),
        curves_section(runs),
        directions_section(runs),
        pairs_section(runs),
        samples_section(runs),
        data_section(runs),
        settings_section(runs),
    )
    title = (
        "Run " + runs[0].name if len(runs) == 1 else "Runs " + join_names([r.name for r in runs])
    )
    return render(title, tuple(section for section in sections if section), hovers=True)
