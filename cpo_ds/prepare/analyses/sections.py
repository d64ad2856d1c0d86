"""All sections of the report, in their order on the page."""

from __future__ import annotations

from pathlib import Path

from cpo_ds.prepare.analyses.agreement_section import agreement_section
from cpo_ds.prepare.analyses.bias_section import bias_section
from cpo_ds.prepare.analyses.choices_section import choices_section
from cpo_ds.prepare.analyses.distributions_section import distributions_section
from cpo_ds.prepare.analyses.margins_section import margins_section
from cpo_ds.prepare.analyses.reference_section import reference_section
from cpo_ds.prepare.analyses.scored import read_scored
from cpo_ds.prepare.analyses.scores_section import scores_section
from cpo_ds.prepare.analyses.view import make_view, selecting_metrics
from cpo_ds.report.page import Section


def analyse(path: Path, metrics: str | None) -> tuple[Section, ...]:
    """The report's sections on a file of scored rows. Raises `UserError`.

    The mean of `metrics`, like `"kiwi+xcomet"`, chooses; without it, `selecting_metrics` decides.
    """
    scored = read_scored(str(path))
    view = make_view(scored, selecting_metrics(scored, metrics))
    return (
        scores_section(view, path.name),
        reference_section(view),
        choices_section(view),
        margins_section(view),
        distributions_section(view),
        agreement_section(view),
        bias_section(view),
    )
