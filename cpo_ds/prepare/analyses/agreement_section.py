"""The section on agreement: whether metrics rank and choose alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from cpo_ds.prepare.analyses import charts
from cpo_ds.prepare.analyses.agreement import (
    RankedPairs,
    SameChoices,
    pearson,
    rank_pairs,
    same_choices,
    spearman,
)
from cpo_ds.prepare.analyses.view import ALL, CHART_METRICS, View
from cpo_ds.report.page import (
    Chart,
    Section,
    Table,
    count,
    decimal,
    first_findings,
    share,
)

ANCHOR, TITLE = "agreement", "How far metrics agree on translations of the same source"
ONE_METRIC = "There is one metric: it takes two to compare. Score the rows by another one as well."


@dataclass(frozen=True)
class _Agreement:
    """The agreement of two metrics in one group of rows."""

    pairs: RankedPairs
    choices: SameChoices
    spearman: float
    pearson: float


def agreement_section(view: View) -> Section:
    """The section that compares each two metrics."""
    # Compare, unless there is nothing to compare.
    metrics = [metric.name for metric in view.scored.metrics]
    if len(metrics) < 2:
        return Section(ANCHOR, TITLE, explanation=(ONE_METRIC,))
    by_group = {pair: _compare(view, *pair) for pair in combinations(metrics, 2)}
    overall = {pair: next(iter(groups.values())) for pair, groups in by_group.items()}
    if not any(one.pairs.ranked for one in overall.values()):
        why = "No source has two translations that two metrics rank: there is nothing to compare."
        return Section(ANCHOR, TITLE, explanation=(why,))

    # The sentences.
    findings = [
        f"{first} and {second} rank {share(one.pairs.share_alike)} of "
        f"{count(one.pairs.ranked, 'pair')} alike and choose the same best translation in "
        f"{share(one.choices.best, one.choices.rows)}, the same worst in "
        f"{share(one.choices.worst, one.choices.rows)} of {count(one.choices.rows, 'row')}."
        for (first, second), one in overall.items()
    ]
    explanation = (
        "A pair is two translations of one source. It counts as ranked if neither metric gives "
        "both the same score. Two unrelated metrics rank half of the pairs alike. By chance they "
        "choose the same best translation with a probability of one over the number of "
        "translations.",
        "Kendall's tau-b is over the same pairs, ties counted. Spearman's and Pearson's "
        "correlations are over all translations of a direction, so differences between easy and "
        "hard sources raise them. In a mean over directions each direction counts the same.",
    )

    # The chart and the tables.
    in_chart = combinations(metrics[:CHART_METRICS], 2)
    parts = (
        _chart({pair: overall[pair] for pair in in_chart}),
        _overall_table(overall),
        _direction_table(by_group),
    )
    return Section(ANCHOR, TITLE, first_findings(findings), explanation, parts)


def _compare(view: View, first: str, second: str) -> dict[str, _Agreement]:
    """The agreement of two metrics in each group of rows.

    Correlations are within a direction only, since levels differ between directions.
    """
    by_group = {}
    scored = view.scored
    tables = scored.table(first), scored.table(second)
    for group, rows in view.groups.items():
        scores = tuple(table[rows] for table in tables)
        by_group[group] = _Agreement(
            rank_pairs(*scores),
            same_choices(*(scored.row_scores(scored.scores[n], rows) for n in (first, second))),
            math.nan if group == ALL else spearman(*scores),
            math.nan if group == ALL else pearson(*scores),
        )
    return by_group


def _chart(overall: dict[tuple[str, str], _Agreement]) -> Chart:
    """The chart of the agreement over all rows."""
    shares = [
        (
            one.pairs.share_alike,
            _part(one.choices.best, one.choices),
            _part(one.choices.worst, one.choices),
        )
        for one in overall.values()
    ]
    values = dict(zip(charts.AGREEMENT_MARKERS, zip(*shares, strict=True), strict=True))
    labels = [_label(tuple(charts.short(name, 19) for name in pair)) for pair in overall]
    return Chart(
        charts.agreement_chart(labels, values),
        "Markers: share of pairs ranked alike, of rows with the same best and with the same worst "
        "translation, for each two metrics. The table below has the numbers.",
        "Agreement of each two metrics.",
        tuple((colour, name) for name, (_, colour) in charts.AGREEMENT_MARKERS.items()),
    )


def _label(pair: tuple[str, ...]) -> str:
    """The two metrics as one label of a line."""
    return " · ".join(pair)


def _part(number: int, choices: SameChoices) -> float:
    """A number of rows as a share of those with a choice; NaN without any."""
    return number / choices.rows if choices.rows else math.nan


def _overall_table(overall: dict[tuple[str, str], _Agreement]) -> Table:
    """The table of the agreement over all rows."""

    def line(one: _Agreement) -> tuple[str, ...]:
        pairs, choices = one.pairs, one.choices
        ties = pairs.tied_in_first + pairs.tied_in_second + pairs.tied_in_both
        return (
            count(pairs.ranked),
            share(pairs.share_alike),
            count(ties),
            decimal(pairs.kendall, 3),
            count(choices.rows),
            share(choices.best, choices.rows),
            share(choices.worst, choices.rows),
            share(choices.by_chance),
        )

    return Table(
        "Agreement over all rows. The last column is the share of the same best (or worst) choices "
        "by chance.",
        ("metrics", "pairs ranked", "alike", "pairs tied", "tau-b", "rows", "same best",
         "same worst", "by chance"),
        tuple((_label(pair), (line(one),)) for pair, one in overall.items()),
    )  # fmt: skip


def _direction_table(by_group: dict[tuple[str, str], dict[str, _Agreement]]) -> Table:
    """The table of the agreement by direction, with the mean of the directions."""

    def values(one: _Agreement) -> tuple[float, ...]:
        shares = _part(one.choices.best, one.choices), _part(one.choices.worst, one.choices)
        return (one.pairs.share_alike, *shares, one.pairs.kendall, one.spearman, one.pearson)

    def line(label: str, numbers: Sequence[float]) -> tuple[str, ...]:
        correlations = (decimal(number, 3) for number in numbers[3:])
        return (label, *(share(number) for number in numbers[:3]), *correlations)

    def lines(groups: dict[str, _Agreement]) -> tuple[tuple[str, ...], ...]:
        numbers = {group: values(one) for group, one in groups.items() if group != ALL}
        mean = [_mean(column) for column in zip(*numbers.values(), strict=True)]
        several = [line("mean of directions", mean)] if len(numbers) > 1 else []
        return (*several, *(line(group, each) for group, each in numbers.items()))

    return Table(
        "Agreement by direction.",
        ("metrics", "direction", "alike", "same best", "same worst", "tau-b", "Spearman",
         "Pearson"),
        tuple((_label(pair), lines(groups)) for pair, groups in by_group.items()),
        ("direction",),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
