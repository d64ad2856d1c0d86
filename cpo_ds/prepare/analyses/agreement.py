"""What one metric says of another: whether they agree, and whether choosing by one favours it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cpo_ds.prepare.analyses.systems import best_and_worst

RowScores = Mapping[str, float]  # of one row's translations, in the order that breaks ties


@dataclass(frozen=True)
class RankedPairs:
    """Pairs of translations of the same source, by how two metrics rank them."""

    alike: int
    opposite: int
    tied_in_first: int  # and not in the second
    tied_in_second: int
    tied_in_both: int

    @property
    def ranked(self) -> int:
        """Pairs that both metrics rank."""
        return self.alike + self.opposite

    @property
    def share_alike(self) -> float:
        """Of the pairs that both rank, those that they rank alike; NaN of none."""
        return self.alike / self.ranked if self.ranked else math.nan

    @property
    def kendall(self) -> float:
        """Kendall's tau-b over all of these pairs, from -1 to 1; NaN where a metric only ties."""
        first, second = self.ranked + self.tied_in_second, self.ranked + self.tied_in_first
        if not first or not second:
            return math.nan
        return (self.alike - self.opposite) / math.sqrt(first * second)


def rank_pairs(first: np.ndarray, second: np.ndarray) -> RankedPairs:
    """Counts pairs within each row of two tables of scores, [rows, systems]; NaN takes no part."""
    first, second = _pack(first, second)
    alike = opposite = tied_in_first = tied_in_second = tied_in_both = 0
    for i, j in combinations(range(first.shape[1]), 2):
        there = ~np.isnan(first[:, j])  # what is there stands before what is not
        order_first = _order(first[there, i], first[there, j])
        order_second = _order(second[there, i], second[there, j])
        product = order_first * order_second
        alike += int((product > 0).sum())
        opposite += int((product < 0).sum())
        tied_in_first += int(((order_first == 0) & (order_second != 0)).sum())
        tied_in_second += int(((order_first != 0) & (order_second == 0)).sum())
        tied_in_both += int(((order_first == 0) & (order_second == 0)).sum())
    return RankedPairs(alike, opposite, tied_in_first, tied_in_second, tied_in_both)


def _pack(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves what both score to the front of each row, and cuts columns that become empty.

    Of hundreds of systems a row has a few.
    """
    missing = np.isnan(first) | np.isnan(second)
    columns = np.argsort(missing, axis=1, kind="stable")
    columns = columns[:, : int((~missing).sum(axis=1).max(initial=0))]
    missing = np.take_along_axis(missing, columns, axis=1)
    packed = (np.take_along_axis(table, columns, axis=1) for table in (first, second))
    packed_first, packed_second = (np.where(missing, np.nan, table) for table in packed)
    return packed_first, packed_second


def _order(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """1 where left is higher, -1 where right is, 0 for a tie."""
    return (left > right).astype(np.int8) - (left < right).astype(np.int8)


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of what both score; NaN for fewer than two or where one is constant."""
    first, second = _both(first, second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman correlation: Pearson's of the ranks, where ties share the mean of their ranks."""
    return pearson(*map(_ranks, _both(first, second)))


def _both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = ~(np.isnan(first) | np.isnan(second))
    return first[there], second[there]


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


@dataclass(frozen=True)
class SameChoices:
    """In how many rows two metrics choose the same; `by_chance` is what blind choices would."""

    rows: int  # in which both choose, among the translations that both score
    best: int
    worst: int
    by_chance: float  # mean of 1 / translations; NaN of no rows


def same_choices(first: Iterable[RowScores], second: Iterable[RowScores]) -> SameChoices:
    """Compares the choices of two metrics, row by row."""
    best = worst = 0
    chances = []
    for one, other in map(_common, first, second):
        picked, otherwise = best_and_worst(one), best_and_worst(other)
        if picked and otherwise:
            best += picked[0] == otherwise[0]
            worst += picked[1] == otherwise[1]
            chances.append(1 / len(one))
    by_chance = sum(chances) / len(chances) if chances else math.nan
    return SameChoices(len(chances), best, worst, by_chance)


def _common(first: RowScores, second: RowScores) -> tuple[dict[str, float], dict[str, float]]:
    """The scores of what both score, in the order of the first."""
    systems = [system for system in first if system in second]
    return {system: first[system] for system in systems}, {s: second[s] for s in systems}


@dataclass(frozen=True)
class Gain:
    """What choosing by some metrics brings by another, in scores of that other; NaN of no rows."""

    rows: int
    over_mean: float  # chosen minus the mean of the row
    over_rejected: float  # chosen minus rejected
    attainable: float  # the highest of the row minus its mean

    @property
    def share(self) -> float:
        """Which part of what can be attained is; NaN where nothing can."""
        return self.over_mean / self.attainable if self.attainable else math.nan


def gain(selecting: Iterable[RowScores], evaluating: Iterable[RowScores]) -> Gain:
    """Means over the rows in which the selecting scores choose, among what both score."""
    gains = []
    for by_selecting, by_evaluating in map(_common, selecting, evaluating):
        picked = best_and_worst(by_selecting)
        if picked:
            mean = sum(by_evaluating.values()) / len(by_evaluating)
            chosen, rejected = (by_evaluating[system] for system in picked)
            gains.append((chosen - mean, chosen - rejected, max(by_evaluating.values()) - mean))
    if not gains:
        return Gain(0, math.nan, math.nan, math.nan)
    over_mean, over_rejected, attainable = np.mean(gains, axis=0)
    return Gain(len(gains), float(over_mean), float(over_rejected), float(attainable))


def deviation_within(table: np.ndarray) -> float:
    """Standard deviation of the scores of one source's translations, pooled over [rows, systems].

    The root of the squared distances from the row's mean over the degrees of freedom (translations
    minus rows); NaN where no row has two.
    """
    counts = (~np.isnan(table)).sum(axis=1)
    table, counts = table[counts > 1], counts[counts > 1]
    if not len(table):
        return math.nan
    distances = table - np.nanmean(table, axis=1, keepdims=True)
    return math.sqrt(float(np.nansum(distances**2)) / int((counts - 1).sum()))
