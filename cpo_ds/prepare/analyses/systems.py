"""What scores say of systems: against the reference, among the chosen, and how they spread."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.prepare.analyses.scored import ScoredRow
from cpo_ds.prepare.pairs.choose import RatedRow, choose, rate

Z95 = 1.959964  # half of a 95% interval, in standard errors
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NO_ROW = CandidateRow("", "", None, {}, {}, "")  # one that no person has judged


# Against the reference.


@dataclass(frozen=True)
class Versus:
    """In how many rows a system scores above, equal to and below the reference.

    `difference` is the mean of the system's score minus the reference's, and `margin` half of its
    95% interval; NaN where there are no rows, or for `margin` fewer than two.
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
        """95% interval of the share of rows in which the system is better."""
        return wilson(self.better, self.rows)


def versus_reference(system: np.ndarray, reference: np.ndarray) -> Versus:
    """Compares two columns of scores, [rows] each; rows in which one is NaN do not count."""
    difference = system - reference
    difference = difference[~np.isnan(difference)]
    count = len(difference)
    return Versus(
        better=int((difference > 0).sum()),
        equal=int((difference == 0).sum()),
        worse=int((difference < 0).sum()),
        difference=float(difference.mean()) if count else math.nan,
        margin=Z95 * float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan,
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927, without continuity correction); NaN of no trials."""
    if trials == 0:
        return math.nan, math.nan
    share, weight = successes / trials, Z95**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


# Chosen and rejected.


def best_and_worst(scores: Mapping[str, float]) -> tuple[str, str] | None:
    """The names that `cpo-ds prepare select` chooses and rejects by these scores, if any."""
    pairs = choose(RatedRow(_NO_ROW, {}, scores, 0, False), "best-worst")
    return None if isinstance(pairs, str) else (pairs[0].chosen_system, pairs[0].rejected_system)


@dataclass(frozen=True)
class Provenance:
    """How often each system is chosen and rejected, and why rows have no choice.

    `human` counts the rows in which a person's preference decides, as it does for
    `cpo-ds prepare select`.
    """

    chosen: Counter[str]
    rejected: Counter[str]
    no_choice: Counter[str]
    human: int

    @property
    def pairs(self) -> int:
        """Rows with a choice."""
        return self.chosen.total()


def provenance(rows: Iterable[ScoredRow], metrics: tuple[str, ...]) -> Provenance:
    """Chooses in every row by the mean of metrics and counts where it comes from."""
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
    """Scores of one system; NaN where there are none, or for `deviation` fewer than two."""

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
