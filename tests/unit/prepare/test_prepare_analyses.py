"""The analyses of scored rows: numbers worked by hand, and changes that must not matter."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.sameness import best_and_worst
from cpo_ds.prepare.analyses.agreement import (
    deviation_within,
    gain,
    pearson,
    rank_pairs,
    same_choices,
    spearman,
)
from cpo_ds.prepare.analyses.systems import (
    distribution,
    make_choices,
    provenance,
    versus_reference,
    wilson,
)

NAN = math.nan


def scored_row(scores: dict[str, dict[str, float]], **values: Any) -> CandidateRow:
    """An English-German row; systems are in the order of the first metric's scores."""
    names = next(iter(scores.values()))
    candidates = {name: f"translation {name}" for name in names if name != "reference"}
    reference = "reference text" if "reference" in names else None
    return CandidateRow("en-de", "source", reference, candidates, {"scores": scores, **values}, "")


# Against the reference.


def test_against_the_reference_by_hand() -> None:
    system = np.array([0.9, 0.5, 0.7, NAN, 0.4])
    reference = np.array([0.8, 0.5, 0.9, 0.1, NAN])
    one = versus_reference(system, reference)
    assert (one.better, one.equal, one.worse) == (1, 1, 1)
    assert one.difference == pytest.approx(-0.1 / 3)
    deviation = math.sqrt(((0.4 / 3) ** 2 + (0.1 / 3) ** 2 + (0.5 / 3) ** 2) / 2)
    assert one.margin == pytest.approx(1.959964 * deviation / math.sqrt(3))
    nothing = versus_reference(system[3:], reference[3:])
    assert nothing.rows == 0 and math.isnan(nothing.difference) and math.isnan(nothing.interval[0])


def test_wilson_by_hand() -> None:
    # Brown, Cai and DasGupta (2001) discuss it; the values are the formula's by hand.
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert wilson(0, 5) == pytest.approx((0.0, 0.43449), abs=1e-5)
    assert wilson(5, 5) == pytest.approx((0.56551, 1.0), abs=1e-5)


@settings(deadline=None)
@given(st.integers(1, 10_000), st.data())
def test_wilson_holds_the_share_and_mirrors(trials: int, data: Any) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1 or math.isclose(high, successes / trials)
    mirrored = wilson(trials - successes, trials)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


# Chosen and rejected.


def test_where_choices_come_from_by_hand() -> None:
    rows = [
        scored_row({"m": {"reference": 0.9, "a": 0.9, "b": 0.1, "c": 0.1}}),  # first of equals
        scored_row({"m": {"c": 0.9, "b": 0.9, "a": 0.2}}),
        scored_row({"m": {"a": 0.5, "b": 0.5}}),
        scored_row({"m": {"a": 0.5}}),
        scored_row({"m": {"a": 0.9, "b": 0.1}}, preference={"chosen": "b", "rejected": "a"}),
    ]
    one = provenance(make_choices(rows, ("m",)))
    assert one.chosen == {"reference": 1, "c": 1, "b": 1}
    assert one.rejected == {"b": 1, "a": 2}
    assert one.no_choice == {"equal scores": 1, "fewer than two scored translations": 1}
    assert (one.pairs, one.human) == (3, 1)


def test_the_mean_of_metrics_chooses_among_what_all_score() -> None:
    scores = {"m": {"a": 0.9, "b": 0.5, "c": 0.1}, "n": {"a": 0.1, "b": 0.6}}
    one = provenance(make_choices([scored_row(scores)], ("m", "n")))  # a 0.5, b 0.55
    assert (one.chosen, one.rejected) == ({"b": 1}, {"a": 1})


SCORES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 4).map(float), max_size=6)


def test_the_first_of_the_highest_and_of_the_lowest_by_scores_alone() -> None:
    assert best_and_worst({"reference": 0.9, "a": 0.1, "b": 0.9, "c": 0.1}) == ("reference", "a")
    assert best_and_worst({"c": 0.1, "b": 0.9, "a": 0.1}) == ("b", "c")
    assert best_and_worst({"a": 0.5, "b": 0.5}) is None
    assert best_and_worst({"a": 0.5}) is None and best_and_worst({}) is None


@settings(deadline=None)
@given(st.lists(SCORES.filter(bool), max_size=8), st.randoms(use_true_random=False))
def test_order_of_rows_names_and_scale_change_no_choice(rows: list[Any], random: Any) -> None:
    one = provenance(make_choices([scored_row({"m": scores}) for scores in rows], ("m",)))
    shuffled = list(rows)
    random.shuffle(shuffled)
    new = [{name.upper(): 8 * score - 3 for name, score in s.items()} for s in shuffled]
    other = provenance(make_choices([scored_row({"m": scores}) for scores in new], ("m",)))
    assert other.chosen == {name.upper(): count for name, count in one.chosen.items()}
    assert other.rejected == {name.upper(): count for name, count in one.rejected.items()}
    assert other.no_choice == one.no_choice


# Distributions.


def test_distribution_by_hand() -> None:
    one = distribution(np.array([4.0, NAN, 1.0, 3.0, 2.0]))
    assert (one.count, one.mean) == (4, 2.5)
    assert one.deviation == pytest.approx(math.sqrt(5 / 3))
    assert one.quantiles == pytest.approx((1.15, 1.75, 2.5, 3.25, 3.85))
    assert distribution(np.array([NAN])).count == 0
    assert math.isnan(distribution(np.array([1.0])).deviation)


# Agreement.


def test_ranked_pairs_by_hand() -> None:
    one = rank_pairs(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]]))
    assert (one.alike, one.opposite, one.share_alike, one.kendall) == (2, 1, 2 / 3, 1 / 3)
    # Two sources: pairs across them do not count, and a translation that one metric lacks neither.
    first = np.array([[1.0, 1.0, 2.0, NAN], [9.0, NAN, 8.0, NAN]])
    second = np.array([[1.0, 2.0, 2.0, 5.0], [0.0, 3.0, 7.0, NAN]])
    one = rank_pairs(first, second)
    assert (one.alike, one.opposite) == (1, 1)
    assert (one.tied_in_first, one.tied_in_second, one.tied_in_both) == (1, 1, 0)
    assert one.kendall == 0.0
    assert rank_pairs(first[:1], second[:1]).kendall == pytest.approx(0.5)
    assert math.isnan(rank_pairs(first, np.ones((2, 4))).kendall)


TABLES = arrays(float, (4, 5), elements=st.sampled_from([NAN, 0.0, 1.0, 2.0, 3.0, 4.0]))


@settings(deadline=None)
@given(TABLES, TABLES)
def test_ranked_pairs_equal_counting_them_one_by_one(first: Any, second: Any) -> None:
    signs = [
        (np.sign(a[i] - a[j]), np.sign(b[i] - b[j]))
        for a, b in zip(first, second, strict=True)
        for i, j in itertools.combinations(range(5), 2)
        if not np.isnan([a[i], a[j], b[i], b[j]]).any()
    ]
    one = rank_pairs(first, second)
    assert one.alike == sum(a * b > 0 for a, b in signs)
    assert one.opposite == sum(a * b < 0 for a, b in signs)
    assert one.tied_in_first == sum(a == 0 != b for a, b in signs)
    assert one.tied_in_second == sum(b == 0 != a for a, b in signs)
    assert one.tied_in_both == sum(a == b == 0 for a, b in signs)


@settings(deadline=None)
@given(TABLES, TABLES, st.permutations(range(4)), st.permutations(range(5)))
def test_order_and_scale_change_no_agreement(
    first: Any, second: Any, rows: list[int], systems: list[int]
) -> None:
    def moved(table: np.ndarray) -> np.ndarray:
        return table[rows][:, systems]

    assert rank_pairs(moved(first) * 4 - 1, moved(second)) == rank_pairs(first, second)
    for correlation, changed in ((spearman, np.exp(first)), (pearson, first * 4 - 1)):
        before, after = correlation(first, second), correlation(moved(changed), moved(second))
        assert after == pytest.approx(before, abs=1e-9, nan_ok=True)


def test_correlations_by_hand() -> None:
    first, second = np.array([10.0, 20.0, 20.0, 40.0, NAN]), np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    assert pearson(first, second) == pytest.approx(45 / math.sqrt(475 * 5))
    assert spearman(first, second) == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # ranks 1 2.5 2.5 4
    assert math.isnan(pearson(first, np.full(5, 0.5)))
    assert math.isnan(spearman(first[:1], second[:1]))


@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
@settings(deadline=None, max_examples=30)
@given(TABLES, TABLES)
def test_agreement_equals_scipy(first: Any, second: Any) -> None:
    scored = ~(np.isnan(first) | np.isnan(second))
    if scored.sum() > 1:
        expected = stats.spearmanr(first[scored], second[scored]).statistic
        assert spearman(first, second) == pytest.approx(expected, nan_ok=True)
    in_row = scored[0]
    if in_row.sum() > 1:
        expected = stats.kendalltau(first[0][in_row], second[0][in_row]).statistic
        tau = rank_pairs(first[:1], second[:1]).kendall
        assert tau == pytest.approx(expected, nan_ok=True)


def test_same_choices_by_hand() -> None:
    first = [{"a": 3, "b": 2, "c": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 1}, {"a": 5, "b": 1}]
    second = [{"a": 9, "b": 1, "c": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 2}, {"a": 1, "x": 2}]
    one = same_choices(first, second)
    assert (one.rows, one.best, one.worst) == (2, 2, 1)
    assert one.by_chance == pytest.approx((1 / 3 + 1 / 2) / 2)


# Bias.


def test_gain_by_hand() -> None:
    selecting = [{"a": 3.0, "b": 1.0, "c": 2.0}, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}]
    evaluating = [{"a": 0.5, "b": 0.2, "c": 0.8}, {"a": 0.4, "b": 0.6}, {"a": 0.0, "b": 9.0}]
    one = gain(selecting, evaluating)  # chosen a over b, then b over a; no choice in the last row
    assert one.rows == 2
    assert one.over_mean == pytest.approx((0.0 + 0.1) / 2)
    assert one.over_rejected == pytest.approx((0.3 + 0.2) / 2)
    assert one.attainable == pytest.approx((0.3 + 0.1) / 2)
    assert one.share == pytest.approx(0.25)
    assert gain(evaluating, evaluating).share == 1
    assert gain([], []).rows == 0 and math.isnan(gain([], []).share)


def test_deviation_within_a_source_by_hand() -> None:
    table = np.array([[1.0, 3.0, NAN], [10.0, 10.0, 13.0], [99.0, NAN, NAN]])
    assert deviation_within(table) == pytest.approx(math.sqrt((2 + 6) / 3))
    assert math.isnan(deviation_within(table[2:]))


@settings(deadline=None)
@given(st.lists(SCORES, max_size=6), st.lists(SCORES, max_size=6))
def test_scale_changes_no_share_of_the_gain(selecting: list[Any], evaluating: list[Any]) -> None:
    wider = [{name: 4 * score + 1 for name, score in row.items()} for row in evaluating]
    one, other = gain(selecting, evaluating), gain(selecting, wider)
    assert other.share == pytest.approx(one.share, nan_ok=True)
    assert other.over_mean == pytest.approx(4 * one.over_mean, nan_ok=True)
