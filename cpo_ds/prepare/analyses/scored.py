"""Reads and checks scored rows, as `cpo-ds prepare score` writes them, and keeps their numbers."""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cpo_ds.data.candidates import REFERENCE, CandidateRow, CandidateRows
from cpo_ds.data.formats import compares_with_reference
from cpo_ds.data.scorers import lower_is_better
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs.choose import rate, scores_of
from cpo_ds.prepare.pairs.metric_choice import Mentions, is_lexical


@dataclass(frozen=True)
class Metric:
    """A metric of the rows, and the records of how its scores were made.

    `scorers` has each different record once, as JSON, with the number of rows that carry it; ""
    stands for rows without a record. A metric with `uses_reference` cannot judge the reference.
    """

    name: str
    uses_reference: bool
    is_lexical: bool  # chrF or BLEU
    is_negated: bool  # its scores have a minus sign here, since lower ones are better
    scorers: tuple[tuple[str, int], ...]
    num_scores: int
    num_missing: int  # translations without a score that could have one


@dataclass(frozen=True)
class ScoredRows:
    """The usable scores of all rows, and the names that occur in them; no texts.

    The translations of all rows stand one after another. Those of a row are in the order that
    breaks ties: the reference first, then as in the row. The order of names does not depend on
    the order of the rows. Quality estimates come before metrics that compare with the reference,
    and the reference comes before the systems. Otherwise names are sorted.
    """

    rows: Iterable[CandidateRow]  # read anew in each iteration
    starts: np.ndarray  # [rows + 1]: the first translation of each row, and the end of the last
    system_of: np.ndarray  # [translations]: indices in `systems`
    direction_of: np.ndarray  # [rows]: indices in `directions`
    scores: dict[str, np.ndarray]  # by metric: [translations]; NaN for a missing score
    metrics: tuple[Metric, ...]
    systems: tuple[str, ...]
    directions: tuple[str, ...]
    skipped: Counter[str]  # rows, candidates and scores left out, by reason
    mentions: Mentions

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return len(self.direction_of)

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
        table = np.full((self.num_rows, len(self.systems)), np.nan)
        row_of = np.repeat(np.arange(self.num_rows), np.diff(self.starts))
        table[row_of, self.system_of] = self.scores[metric]
        return table

    def row_scores(
        self, scores: np.ndarray, rows: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[dict[str, float]]:
        """For each of `rows`, or for all, the scores of its translations by system.

        `scores` has one number for each translation; NaN is left out.
        """
        wanted = np.arange(self.num_rows) if rows is None else np.asarray(rows)
        for start in range(0, len(wanted), _BLOCK):
            block = wanted[start : start + _BLOCK]
            bounds = zip(self.starts[block].tolist(), self.starts[block + 1].tolist(), strict=True)
            for first, end in bounds:
                systems, values = self.system_of[first:end].tolist(), scores[first:end].tolist()
                yield {
                    self.systems[system]: value
                    for system, value in zip(systems, values, strict=True)
                    if not math.isnan(value)
                }


_BLOCK = 4096  # rows whose bounds are Python's numbers at a time


def read_scored(path: str) -> ScoredRows:
    """Reads a file of scored rows. Raises `UserError`, naming file and line, for a bad row."""
    rows = CandidateRows(path)
    numbers = _Numbers()
    for row in rows:
        numbers.add(row)
    metrics = [numbers.metric(name) for name in numbers.scores]
    metrics = [metric for metric in metrics if metric.num_scores]
    metrics.sort(key=lambda metric: (metric.uses_reference, metric.name))
    if not metrics:
        raise UserError(
            f"{path} has no scores; make some with `cpo-ds prepare score --input {path} ...`."
        )
    systems = sorted(numbers.systems, key=lambda name: (name != REFERENCE, name))
    directions = sorted(numbers.directions)
    return ScoredRows(
        rows=rows,
        starts=np.array(numbers.starts),
        system_of=_renumbered(numbers.system_of, numbers.systems, systems),
        direction_of=_renumbered(numbers.direction_of, numbers.directions, directions),
        scores={metric.name: np.frombuffer(numbers.scores[metric.name]) for metric in metrics},
        metrics=tuple(metrics),
        systems=tuple(systems),
        directions=tuple(directions),
        skipped=rows.skipped + numbers.skipped,
        mentions=numbers.mentions,
    )


def _renumbered(numbers: array[int], before: dict[str, int], after: list[str]) -> np.ndarray:
    """Numbers of names by the order `after`; `before` has each name's number so far."""
    new = np.empty(len(before), np.int32)
    for number, name in enumerate(after):
        new[before[name]] = number
    return new[np.frombuffer(numbers, np.int32)]


@dataclass
class _Numbers:
    """The numbers of the rows that were added. Names are numbered as they come up."""

    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    system_of: array[int] = field(default_factory=lambda: array("i"))
    direction_of: array[int] = field(default_factory=lambda: array("i"))
    scores: dict[str, array[float]] = field(default_factory=dict)
    systems: dict[str, int] = field(default_factory=dict)
    directions: dict[str, int] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    mentions: Mentions = field(default_factory=Mentions)

    # By metric: records with the number of their rows, scores, and metrics of a kind.
    records: dict[str, Counter[str]] = field(default_factory=dict)
    num_scores: Counter[str] = field(default_factory=Counter)
    lexical: set[str] = field(default_factory=set)
    negated: set[str] = field(default_factory=set)
    comparing: set[str] = field(default_factory=set)

    # References, and by metric how many more a row's record leaves out than the metric's name does.
    references: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, row: CandidateRow) -> None:
        """Checks and adds a row. Raises `UserError`, naming the line, if a score is bad."""
        # The row's direction and translations.
        self.mentions.add(row)
        number = self.directions.setdefault(row.language_pair, len(self.directions))
        self.direction_of.append(number)
        names = list(row.translations)
        self.system_of.extend(self.systems.setdefault(n, len(self.systems)) for n in names)
        end = self.starts[-1] + len(names)

        # Its scores; a metric that comes up later has none so far.
        scores = scores_of(row)
        scorers = row.values.get("scorers")
        for metric, values in scores.items():
            means = rate(row, (metric,)).means
            column = self.scores.setdefault(metric, array("d"))
            _fill(column, self.starts[-1])
            column.extend(means.get(name, math.nan) for name in names)
            self._count(metric, len(means), scorers)
            if absent := sum(values[name] is not None for name in values.keys() - set(names)):
                self.skipped["score of a translation that is not there"] += absent
        self.starts.append(end)

        # References that a metric cannot judge by the row's record.
        self.references += row.reference is not None
        if row.reference is not None and isinstance(scorers, dict):
            for metric in scorers:
                by_name = compares_with_reference(None, metric)
                self.left_out[metric] += compares_with_reference(scorers, metric) - by_name

    def _count(self, metric: str, num_scores: int, scorers: Any) -> None:
        """Counts a row's scores by a metric and their record."""
        if not num_scores:
            return
        record = scorers.get(metric) if isinstance(scorers, dict) else None
        record = record if isinstance(record, dict) else {}
        text = json.dumps(record, sort_keys=True, ensure_ascii=False) if record else ""
        self.records.setdefault(metric, Counter())[text] += 1
        self.num_scores[metric] += num_scores
        if is_lexical(scorers, metric):
            self.lexical.add(metric)
        if lower_is_better(scorers, metric):
            self.negated.add(metric)
        if compares_with_reference(scorers, metric):
            self.comparing.add(metric)

    def metric(self, name: str) -> Metric:
        """A metric, with its records and counts over all rows, once these have been added."""
        _fill(self.scores[name], self.starts[-1])
        by_name = self.references * compares_with_reference(None, name)
        could = self.starts[-1] - by_name - self.left_out[name]
        return Metric(
            name=name,
            uses_reference=name in self.comparing,
            is_lexical=name in self.lexical,
            is_negated=name in self.negated,
            scorers=tuple(sorted(self.records.get(name, {}).items())),
            num_scores=self.num_scores[name],
            num_missing=could - self.num_scores[name],
        )


def _fill(column: array[float], length: int) -> None:
    """Makes a column of scores as long as `length`."""
    column.extend(array("d", [math.nan]) * (length - len(column)))
