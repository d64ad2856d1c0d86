"""All sections of the report, in their order on the page."""

from __future__ import annotations

from pathlib import Path

from cpo_ds.prepare.analyses.agreement_section import agreement
from cpo_ds.prepare.analyses.bias_section import bias
from cpo_ds.prepare.analyses.choices_section import where_choices_come_from
from cpo_ds.prepare.analyses.distributions_section import distributions
from cpo_ds.prepare.analyses.page import Section
from cpo_ds.prepare.analyses.reference_section import gold_or_gilded
from cpo_ds.prepare.analyses.scored import read_scored
from cpo_ds.prepare.analyses.scores_section import about_scores
from cpo_ds.prepare.analyses.view import make_view, selecting_metrics


def analyse(path: Path, metrics: str | None) -> tuple[Section, ...]:
    """The report's sections on a file of scored rows. Raises `UserError`.

    The mean of `metrics`, like `"kiwi+xcomet"`, chooses; without it, `selecting_metrics` decides.
    """
    scored = read_scored(str(path))
    view = make_view(scored, selecting_metrics(scored, metrics))
    return (
        about_scores(view, path.name),
        gold_or_gilded(view),
        where_choices_come_from(view),
        distributions(view),
        agreement(view),
        bias(view),
    )
