"""Compares metrics: how far they agree, and whether choosing by one favours that one."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cpo_ds.data.sameness import best_and_worst
from cpo_ds.prepare.analyses.systems import signs

_ROWS = 2**16  # of a table, to compare at a time
RowScores = Mapping[str, float]  # of one row's translations, in the order that breaks ties


@dataclass(frozen=True)
class RankedPairs:
    """Counts of pairs of translations of the same source, by how two metrics rank them."""

    alike: int
    opposite: int
    tied_in_first: int  # but not in the second
    tied_in_second: int
    tied_in_both: int

    @property
    def ranked(self) -> int:
        """Pairs that both metrics rank."""
        return self.alike + self.opposite

    @property
    def share_alike(self) -> float:
        """The share of pairs ranked alike among those that both rank; NaN without any."""
        return self.alike / self.ranked if self.ranked else math.nan

    @property
    def kendall(self) -> float:
        """Kendall's tau-b over all pairs, from -1 to 1; NaN if a metric has only ties."""
        first, second = self.ranked + self.tied_in_second, self.ranked + self.tied_in_first
        if not first or not second:
            return math.nan
        return (self.alike - self.opposite) / math.sqrt(first * second)


def rank_pairs(first: np.ndarray, second: np.ndarray) -> RankedPairs:
    """Counts pairs within each row of two tables of scores, [rows, systems]; NaN does not count."""
    counts = np.zeros(5, int)
    for start in range(0, len(first), _ROWS):
        counts += _count_pairs(first[start : start + _ROWS], second[start : start + _ROWS])
    return RankedPairs(*counts.tolist())


def _count_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The counts of `RankedPairs`, in their order."""
    first, second = _pack(first, second)
    counts = np.zeros(5, int)
    for i, j in combinations(range(first.shape[1]), 2):
        # Missing scores are packed to the end of a row: if column j has a score, column i has one.
        has_both = ~np.isnan(first[:, j])
        order_first = signs(first[has_both, i], first[has_both, j])
        order_second = signs(second[has_both, i], second[has_both, j])
        product = order_first * order_second
        is_tied, is_tied_in_second = order_first == 0, order_second == 0
        outcomes = (
            product > 0,
            product < 0,
            is_tied & ~is_tied_in_second,
            ~is_tied & is_tied_in_second,
            is_tied & is_tied_in_second,
        )
        counts += [outcome.sum() for outcome in outcomes]
    return counts


def _pack(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves scores of systems that both metrics score to the front of each row.

    Columns that become empty are cut off. That saves time: of hundreds of systems a row has a few.
    """
    missing = np.isnan(first) | np.isnan(second)
    columns = np.argsort(missing, axis=1, kind="stable")
    columns = columns[:, : int((~missing).sum(axis=1).max(initial=0))]
    missing = np.take_along_axis(missing, columns, axis=1)
    packed = (np.take_along_axis(table, columns, axis=1) for table in (first, second))
    packed_first, packed_second = (np.where(missing, np.nan, table) for table in packed)
    return packed_first, packed_second


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two columns of scores, [rows]; rows with a NaN do not count.

    The result is NaN for fewer than two rows, or if a column is constant.
    """
    first, second = _both(first, second)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman correlation: Pearson's of the ranks. Ties share the mean of their ranks."""
    return pearson(*map(_ranks, _both(first, second)))


def _both(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the rows that both columns score."""
    has_both = ~(np.isnan(first) | np.isnan(second))
    return first[has_both], second[has_both]


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value from 0, with the mean rank for ties."""
    order = np.argsort(values)
    is_higher = signs(values[order][1:], values[order][:-1]) > 0
    group = np.empty(len(values), int)
    group[order] = np.concatenate([np.zeros(min(1, len(values)), int), np.cumsum(is_higher)])
    counts = np.bincount(group)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


@dataclass(frozen=True)
class SameChoices:
    """The number of rows in which two metrics choose the same translation."""

    rows: int  # with a choice by both, among the translations that both score
    best: int
    worst: int
    by_chance: float  # share for blind choices: mean of 1 / translations; NaN without rows


def same_choices(first: Iterable[RowScores], second: Iterable[RowScores]) -> SameChoices:
    """Counts equal choices of two metrics; each gives its scores row by row."""
    best = worst = 0
    chances = array("d")
    for one, other in map(_common, first, second):
        by_first, by_second = best_and_worst(one), best_and_worst(other)
        if by_first and by_second:
            best += by_first[0] == by_second[0]
            worst += by_first[1] == by_second[1]
            chances.append(1 / len(one))
    by_chance = sum(chances) / len(chances) if chances else math.nan
    return SameChoices(len(chances), best, worst, by_chance)


def _common(first: RowScores, second: RowScores) -> tuple[dict[str, float], dict[str, float]]:
    """Both metrics' scores of the systems that both score, in the order of the first."""
    systems = [system for system in first if system in second]
    return {system: first[system] for system in systems}, {s: second[s] for s in systems}


@dataclass(frozen=True)
class Gain:
    """The gain from choosing by some metrics, in scores of another metric; NaN without rows."""

    rows: int
    over_mean: float  # chosen minus the mean of the row
    over_rejected: float  # chosen minus rejected
    attainable: float  # the highest of the row minus its mean

    @property
    def share(self) -> float:
        """The gain over the mean as a share of the attainable one; NaN if nothing is attainable."""
        return self.over_mean / self.attainable if self.attainable else math.nan


def gain(selecting: Iterable[RowScores], evaluating: Iterable[RowScores]) -> Gain:
    """The mean gain over the rows in which the selecting scores make a choice.

    Only translations that both score take part.
    """
    gains = array("d")
    for by_selecting, by_evaluating in map(_common, selecting, evaluating):
        picked = best_and_worst(by_selecting)
        if picked:
            mean = sum(by_evaluating.values()) / len(by_evaluating)
            chosen, rejected = (by_evaluating[system] for system in picked)
            best = max(by_evaluating.values())
            gains.extend((chosen - mean, chosen - rejected, best - mean))
    if not gains:
        return Gain(0, math.nan, math.nan, math.nan)
    table = np.frombuffer(gains).reshape(-1, 3)
    over_mean, over_rejected, attainable = np.mean(table, axis=0)
    return Gain(len(table), float(over_mean), float(over_rejected), float(attainable))


def deviation_within(table: np.ndarray) -> float:
    """Standard deviation of the scores of one source's translations, pooled over [rows, systems].

    It is sqrt(sum of squared distances from the row's mean / degrees of freedom), and the degrees
    of freedom are translations minus rows. The result is NaN if no row has two translations.
    """
    counts = (~np.isnan(table)).sum(axis=1)
    table, counts = table[counts > 1], counts[counts > 1]
    if not len(table):
        return math.nan
    distances = table - np.nanmean(table, axis=1, keepdims=True)
    return math.sqrt(float(np.nansum(distances**2)) / int((counts - 1).sum()))
