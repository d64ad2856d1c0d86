"""Compares systems by scores: against the reference, among the chosen, and by distribution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cpo_ds.data.sameness import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from cpo_ds.prepare.analyses.scored import ScoredRow
from cpo_ds.prepare.pairs.choose import choose, rate

Z95 = 1.959964  # half of a 95% interval, in standard errors
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def signs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """1 if left is higher, -1 if right is higher, 0 if they differ by no more than rounding.

    Works element by element, as `data.sameness.same_score` compares two numbers.
    """
    largest = np.maximum(np.abs(left), np.abs(right))
    limit = np.maximum(RELATIVE_TOLERANCE * largest, ABSOLUTE_TOLERANCE)
    return np.where(np.abs(left - right) <= limit, 0, np.sign(left - right)).astype(np.int8)


# Against the reference.


@dataclass(frozen=True)
class ReferenceComparison:
    """The numbers of rows in which a system scores above, equal to and below the reference.

    `difference` is the mean of the system's score minus the reference's, or NaN without rows.
    `margin` is half of its 95% interval, or NaN for fewer than two rows.
    """

    better: int
    equal: int
    worse: int
    difference: float
    margin: float

    @property
    def rows(self) -> int:
        """Rows in which both are scored."""
        return self.better + self.equal + self.worse

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share of rows in which the system is better."""
        return wilson(self.better, self.rows)


def versus_reference(system: np.ndarray, reference: np.ndarray) -> ReferenceComparison:
    """Compares two columns of scores, [rows] each. Rows with a NaN do not count."""
    scored = ~np.isnan(system - reference)
    order = signs(system[scored], reference[scored])
    difference = system[scored] - reference[scored]
    count = len(difference)
    return ReferenceComparison(
        better=int((order > 0).sum()),
        equal=int((order == 0).sum()),
        worse=int((order < 0).sum()),
        difference=float(difference.mean()) if count else math.nan,
        margin=Z95 * float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan,
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927, no continuity correction); NaN without trials."""
    if trials == 0:
        return math.nan, math.nan
    share, weight = successes / trials, Z95**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


# Chosen and rejected.


@dataclass(frozen=True)
class Provenance:
    """Counts of each system among the chosen and the rejected, and of rows without a choice.

    `human` counts the rows in which a person's preference decides, as for `cpo-ds prepare select`.
    """

    chosen: Counter[str]
    rejected: Counter[str]
    no_choice: Counter[str]  # rows, by reason
    human: int

    @property
    def pairs(self) -> int:
        """Rows with a choice."""
        return self.chosen.total()


def provenance(rows: Iterable[ScoredRow], metrics: tuple[str, ...]) -> Provenance:
    """Chooses in every row by the mean of metrics, and counts the systems of the choices."""
    chosen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    no_choice: Counter[str] = Counter()
    human = 0
    for row in rows:
        pairs = choose(rate(row.row, metrics), "best-worst")
        if isinstance(pairs, str):
            no_choice[pairs] += 1
            continue
        for pair in pairs:
            chosen[pair.chosen_system] += 1
            rejected[pair.rejected_system] += 1
            human += pair.is_human
    return Provenance(chosen, rejected, no_choice, human)


# Distributions.


@dataclass(frozen=True)
class Distribution:
    """A summary of one system's scores; NaN without scores, for `deviation` also with only one."""

    count: int
    mean: float
    deviation: float  # standard deviation of the sample
    quantiles: tuple[float, ...]  # at QUANTILES, linear between neighbours


def distribution(scores: np.ndarray) -> Distribution:
    """Summarizes scores of any shape; NaN does not count."""
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return Distribution(0, math.nan, math.nan, (math.nan,) * len(QUANTILES))
    return Distribution(
        count=len(scores),
        mean=float(scores.mean()),
        deviation=float(scores.std(ddof=1)) if len(scores) > 1 else math.nan,
        quantiles=tuple(float(value) for value in np.quantile(scores, QUANTILES)),
    )
