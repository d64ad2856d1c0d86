"""Compares systems by scores: against the reference, among the chosen, and by distribution."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.sameness import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
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


@dataclass(frozen=True)
class Choices:
    """The choice by the mean of some metrics in every row, as numbers.

    `chosen` and `rejected` are indices in `names`, or -1 without a choice. `reason` says why there
    is none, as an index in `reasons`, or -1 with a choice.
    """

    means: np.ndarray  # [translations], in the order of the rows; NaN without a mean
    chosen: np.ndarray  # [rows]
    rejected: np.ndarray  # [rows]
    reason: np.ndarray  # [rows]
    is_human: np.ndarray  # [rows]: whether a person's preference decides
    names: tuple[str, ...]
    reasons: tuple[str, ...]


def make_choices(rows: Iterable[CandidateRow], metrics: tuple[str, ...]) -> Choices:
    """Chooses in every row by the mean of metrics."""
    names: dict[str, int] = {}
    reasons: dict[str, int] = {}
    means, is_human = array("d"), array("b")
    chosen, rejected, reason = array("i"), array("i"), array("i")
    for row in rows:
        rated = rate(row, metrics)
        means.extend(rated.means.get(name, math.nan) for name in row.translations)
        pairs = choose(rated, "best-worst")
        if isinstance(pairs, str):
            for numbers in (chosen, rejected):
                numbers.append(-1)
            reason.append(reasons.setdefault(pairs, len(reasons)))
            is_human.append(False)
            continue
        (pair,) = pairs
        chosen.append(names.setdefault(pair.chosen_system, len(names)))
        rejected.append(names.setdefault(pair.rejected_system, len(names)))
        reason.append(-1)
        is_human.append(pair.is_human)
    return Choices(
        means=np.frombuffer(means),
        chosen=np.frombuffer(chosen, np.int32),
        rejected=np.frombuffer(rejected, np.int32),
        reason=np.frombuffer(reason, np.int32),
        is_human=np.frombuffer(is_human, np.int8),
        names=tuple(names),
        reasons=tuple(reasons),
    )


def provenance(choices: Choices, rows: np.ndarray | slice = slice(None)) -> Provenance:
    """Counts the systems of the choices in some rows, or in all."""
    return Provenance(
        chosen=_counted(choices.chosen[rows], choices.names),
        rejected=_counted(choices.rejected[rows], choices.names),
        no_choice=_counted(choices.reason[rows], choices.reasons),
        human=int(choices.is_human[rows].sum()),
    )


def _counted(numbers: np.ndarray, names: Sequence[str]) -> Counter[str]:
    """How often each name comes up; -1 stands for none."""
    counts = np.bincount(numbers[numbers >= 0], minlength=len(names)).tolist()
    return +Counter(dict(zip(names, counts, strict=True)))


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
