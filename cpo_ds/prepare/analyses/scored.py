"""Reads and checks scored rows, as `cpo-ds prepare score` writes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpo_ds.data.candidates import REFERENCE, CandidateRow, read_candidates
from cpo_ds.data.formats import compares_with_reference
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs.choose import rate
from cpo_ds.prepare.pairs.metric_choice import is_lexical


@dataclass(frozen=True)
class Metric:
    """A metric of the rows, and the records of how its scores were made.

    `scorers` has each different record once, as JSON, with the number of rows that carry it; ""
    stands for rows without a record. A metric with `uses_reference` cannot judge the reference.
    """

    name: str
    uses_reference: bool
    is_lexical: bool  # chrF or BLEU
    scorers: tuple[tuple[str, int], ...]
    num_scores: int
    num_missing: int  # translations without a score that could have one


@dataclass(frozen=True)
class ScoredRow:
    """A row and its usable scores, `{metric: {system: score}}`.

    Systems are in the order that breaks ties: the reference first, then as in the row.
    """

    row: CandidateRow
    scores: Mapping[str, Mapping[str, float]]
    num_missing: Mapping[str, int]  # by metric


@dataclass(frozen=True)
class ScoredRows:
    """Scored rows, and the names that occur in them.

    The order of names does not depend on the order of the rows. Quality estimates come before
    metrics that compare with the reference, and the reference comes before the systems. Otherwise
    names are sorted.
    """

    rows: tuple[ScoredRow, ...]
    metrics: tuple[Metric, ...]
    systems: tuple[str, ...]
    directions: tuple[str, ...]
    skipped: Counter[str]  # rows, candidates and scores left out, by reason

    @property
    def estimates(self) -> tuple[str, ...]:
        """Quality estimates: the names of the metrics that do not look at the reference."""
        return tuple(metric.name for metric in self.metrics if not metric.uses_reference)

    @property
    def has_reference(self) -> bool:
        """Whether any row has a reference."""
        return REFERENCE in self.systems

    def table(self, metric: str) -> np.ndarray:
        """Scores by one metric, [rows, systems]; NaN for a missing score."""
        column = {system: index for index, system in enumerate(self.systems)}
        table = np.full((len(self.rows), len(self.systems)), np.nan)
        for line, row in zip(table, self.rows, strict=True):
            for system, score in row.scores.get(metric, {}).items():
                line[column[system]] = score
        return table

    def masks(self) -> dict[str, np.ndarray]:
        """For each direction, the mask of its rows, [rows] bool."""
        of_rows = np.array([row.row.language_pair for row in self.rows])
        return {direction: of_rows == direction for direction in self.directions}


def read_scored(path: str) -> ScoredRows:
    """Reads a file of scored rows. Raises `UserError`, naming file and line, for a bad row."""
    rows, skipped = read_candidates(path)
    return scored_rows(rows, skipped, path)


def scored_rows(rows: list[CandidateRow], skipped: Counter[str], path: str) -> ScoredRows:
    """Checks the scores of rows from `path`. Raises `UserError` if one is bad or there is none."""
    names = {name for row in rows for name in _scored_by(row)}
    scored = tuple(_scored_row(row, sorted(names), skipped) for row in rows)
    metrics = [_metric(name, scored) for name in names]
    metrics = [metric for metric in metrics if metric.num_scores]
    metrics.sort(key=lambda metric: (metric.uses_reference, metric.name))
    if not metrics:
        raise UserError(
            f"{path} has no scores; make some with `cpo-ds prepare score --input {path} ...`."
        )
    systems = {name for row in rows for name in row.translations}
    return ScoredRows(
        rows=scored,
        metrics=tuple(metrics),
        systems=tuple(sorted(systems, key=lambda name: (name != REFERENCE, name))),
        directions=tuple(sorted({row.language_pair for row in rows})),
        skipped=skipped,
    )


def _scored_by(row: CandidateRow) -> dict[str, Any]:
    """The row's field `scores`; empty if it has none."""
    scores = row.values.get("scores")
    return scores if isinstance(scores, dict) else {}


def _scored_row(row: CandidateRow, names: list[str], skipped: Counter[str]) -> ScoredRow:
    """Checks a row's scores by each metric; counts unusable ones in `skipped`."""
    rated = {name: rate(row, (name,)) for name in names}
    for name in _scored_by(row):
        values = _scored_by(row)[name] or {}
        if absent := sum(values[system] is not None for system in values.keys() - row.translations):
            skipped["score of a translation that is not there"] += absent
    return ScoredRow(
        row,
        {name: one.means for name, one in rated.items() if one.means},
        {name: one.unscored for name, one in rated.items()},
    )


def _metric(name: str, rows: tuple[ScoredRow, ...]) -> Metric:
    """A metric, with its records and counts over all rows."""
    records: Counter[str] = Counter()
    uses_reference = likeness = False
    for row in rows:
        if name in row.scores:
            scorers = row.row.values.get("scorers")
            record = scorers.get(name) if isinstance(scorers, dict) else None
            record = record if isinstance(record, dict) else {}
            records[json.dumps(record, sort_keys=True, ensure_ascii=False) if record else ""] += 1
            likeness |= is_lexical(scorers, name)
            uses_reference |= compares_with_reference(scorers, name)
    return Metric(
        name=name,
        uses_reference=uses_reference,
        is_lexical=likeness,
        scorers=tuple(sorted(records.items())),
        num_scores=sum(len(row.scores.get(name, {})) for row in rows),
        num_missing=sum(row.num_missing[name] for row in rows),
    )
