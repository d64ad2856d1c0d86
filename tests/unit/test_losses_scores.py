"""Objectives that read scores: rankings by Plackett and Luce, and margins by score differences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import DOUBLE, logps_of, preference_of

from cpo_ds.losses import pair_terms, plackett_luce
from cpo_ds.schema import PairLogps
from cpo_ds.settings.objective import LossConfig

RANKED = LossConfig(name="plackett-luce", beta=1.0)


def ranked(logits: list[float], scores: list[float], dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    """The loss of one list of completions."""
    row = torch.tensor([logits], dtype=dtype)
    there = torch.ones(1, len(logits), dtype=torch.bool)
    return plackett_luce(row, torch.tensor([scores], dtype=dtype), there)[0]


def of_all_rankings(logits: list[float], scores: list[float]) -> float:
    """-log of the sum of the probabilities of all rankings that agree with the scores."""
    total = 0.0
    for ranking in itertools.permutations(range(len(logits))):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(ranking)):
            continue
        weights = [math.exp(logits[number]) for number in ranking]
        total += math.prod(weights[k] / sum(weights[k:]) for k in range(len(weights)))
    return -math.log(total)


def test_a_ranking_by_hand() -> None:
    """Weights 1, 2, 3, ranked so: 1/6 times 2/5."""
    logits = [math.log(weight) for weight in (1, 2, 3)]
    assert ranked(logits, [9, 5, -1]).item() == pytest.approx(-math.log(1 / 6 * 2 / 5))


def test_ties_by_hand() -> None:
    """Weights 1, 2, 3. Two before the third: 1/6 2/5 + 2/6 1/4; one before two: 1/6."""
    logits = [math.log(weight) for weight in (1, 2, 3)]
    both = 1 / 6 * 2 / 5 + 2 / 6 * 1 / 4
    assert ranked(logits, [2, 2, 1]).item() == pytest.approx(-math.log(both), rel=1e-12)
    assert ranked(logits, [2, 1, 1]).item() == pytest.approx(-math.log(1 / 6), rel=1e-12)
    assert ranked(logits, [1, 1, 1]).item() == 0.0


LOGIT = st.floats(-8, 8)
SCORE = st.integers(0, 2).map(float)
LISTS = st.lists(st.tuples(LOGIT, SCORE), min_size=2, max_size=6)


@settings(max_examples=80, deadline=None)
@given(LISTS)
def test_ties_are_all_rankings_that_agree_with_the_scores(items: list[tuple[float, float]]) -> None:
    logits, scores = (list(column) for column in zip(*items, strict=True))
    expected = of_all_rankings(logits, scores)
    assert ranked(logits, scores).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    single = ranked(logits, scores, torch.float32)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(LISTS, st.randoms(), st.floats(-50, 50), st.floats(-50, 50))
def test_neither_order_nor_shifts_of_the_list_matter(
    items: list[tuple[float, float]], order: Any, by_logit: float, by_score: float
) -> None:
    """Also of tied completions among themselves."""
    logits, scores = (list(column) for column in zip(*items, strict=True))
    shuffled = items.copy()
    order.shuffle(shuffled)
    moved = ranked([logit + by_logit for logit, _ in shuffled], [s + by_score for _, s in shuffled])
    assert moved.item() == pytest.approx(ranked(logits, scores).item(), rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(LISTS)
def test_gradients_of_a_list_add_up_to_zero(items: list[tuple[float, float]]) -> None:
    """A shift of all logits changes nothing; a better one costs less at the top, more below."""
    logits, scores = (list(column) for column in zip(*items, strict=True))
    row = torch.tensor([logits], dtype=DOUBLE, requires_grad=True)
    there = torch.ones(1, len(logits), dtype=torch.bool)
    plackett_luce(row, torch.tensor([scores], dtype=DOUBLE), there).sum().backward()
    assert row.grad is not None
    assert row.grad.sum().item() == pytest.approx(0.0, abs=1e-9)
    for score, gradient in zip(scores, row.grad[0].tolist(), strict=True):
        assert gradient <= 1e-9 or score < max(scores)
        assert gradient >= -1e-9 or score > min(scores)


@pytest.mark.parametrize("tied", [2, 10, 50, 200])
def test_many_ties_stay_exact(tied: int) -> None:
    """All of n + 1 equal ones but the last are first: 1 / (n + 1)."""
    loss = ranked([0.0] * (tied + 1), [1.0] * tied + [0.0])
    assert loss.item() == pytest.approx(math.log(tied + 1), rel=1e-9)


@pytest.mark.parametrize("gap", [-40.0, -15.2, -14.8, 0.3, 5.0, 40.0])
def test_two_ties_by_their_formula_at_any_distance(gap: float) -> None:
    """Weights a and a above 1: a / (2a + 1) a / (a + 1), twice."""
    a = math.exp(gap)
    expected = -math.log(2) - 2 * gap + math.log1p(2 * a) + math.log1p(a)
    loss = ranked([gap, gap, 0.0], [1.0, 1.0, 0.0])
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_far_logits_have_a_finite_loss_and_gradients() -> None:
    row = torch.tensor([[0.0, -3000.0, 3000.0, 2500.0, -2500.0]], requires_grad=True)
    scores = torch.tensor([[2.0, 2.0, 2.0, 1.0, 0.0]])
    loss = plackett_luce(row, scores, torch.ones(1, 5, dtype=torch.bool))
    loss.sum().backward()
    assert loss.item() == pytest.approx(2500 + 5500, rel=1e-3)
    assert row.grad is not None
    expected = torch.tensor([[-1.0, -1.0, 0.0, 2.0, 0.0]])
    torch.testing.assert_close(row.grad, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(-300, -0.01), st.floats(-300, -0.01), st.floats(0.01, 5))
def test_a_ranking_of_two_is_cpo(chosen: float, rejected: float, beta: float) -> None:
    """In every bit, also in float32."""
    pair = (chosen, rejected, 3, 4)
    for convert in (torch.Tensor.double, torch.Tensor.float):
        values = []
        for name in ("plackett-luce", "cpo"):
            logps = logps_of(pair)
            logps = PairLogps(*(convert(value) for value in vars(logps).values()))
            logps.chosen.requires_grad_()
            loss = LossConfig(name=name, beta=beta)  # type: ignore[arg-type]
            terms = pair_terms(logps, loss)
            terms.preference.sum().backward()
            values.append((terms.preference.item(), logps.chosen.grad.item()))  # type: ignore[union-attr]
        assert values[0][0] == values[1][0]
        assert values[0][1] == pytest.approx(values[1][1], rel=1e-6, abs=1e-12)


def lists_of(rejected: list[list[float]], scores: list[list[float]]) -> PairLogps:
    """Pairs with chosen log-probs of -1 and as many rejected completions as are given."""
    pairs, most = len(rejected), max(map(len, rejected))
    filled = torch.tensor([[*row, *[0.0] * (most - len(row))] for row in rejected])
    shares = torch.tensor(
        [[1 / len(row)] * len(row) + [0.0] * (most - len(row)) for row in rejected]
    )
    of_all = torch.tensor([[*row, *[0.0] * (1 + most - len(row))] for row in scores])
    one = torch.ones(pairs)
    return PairLogps(-one, filled, one, torch.ones_like(filled), shares, scores=of_all)


def test_lists_of_several_lengths_do_not_mix() -> None:
    """A place without a completion has a log-prob and a score of 0, which must not count."""
    rejected, scores = [[-2.0], [-3.0, -1.5, -2.5]], [[-1.0, -2.0], [5.0, 3.0, 4.0, 3.0]]
    terms = pair_terms(lists_of(rejected, scores), RANKED)
    expected = [
        of_all_rankings([-1.0, *row], of_row) for row, of_row in zip(rejected, scores, strict=True)
    ]
    assert terms.preference.tolist() == pytest.approx(expected, rel=1e-5)


SIGMOIDS = ("cpo", "simpo", "cpo-simpo", "arpo", "dpo", "dpo-nll")


@pytest.mark.parametrize("name", SIGMOIDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_margin_by_scores_is_taken_from_the_logits(name: str, smoothing: float) -> None:
    """Scores 2 and 1, so that the margin is `score_margin` itself; by the inverse of the loss."""
    pair, options = (-6.0, -16.0, 3, 4), {"name": name, "beta": 0.3}
    (plain,) = (preference_of(pair, **options),)
    logit = -math.log(math.expm1(plain))  # of -log sigmoid(z)
    right, wrong = (math.log1p(math.exp(-z)) for z in (logit - 0.7, 0.7 - logit))
    expected = (1 - smoothing) * right + smoothing * wrong
    value = preference_of(pair, **options, label_smoothing=smoothing, score_margin=0.7)
    assert value == pytest.approx(expected, rel=1e-9)


def test_each_comparison_has_its_own_margin() -> None:
    """Two comparisons of beta 1: gaps of 1 and 2, score differences of 0.5 and 0."""
    logps = lists_of([[-2.0, -3.0], [-2.0]], [[1.0, 0.5, 1.0], [3.0, 2.0]])
    value = pair_terms(logps, LossConfig(beta=1.0, score_margin=2.0)).preference.tolist()
    first = (math.log1p(math.exp(-(1 - 1))) + math.log1p(math.exp(-2))) / 2
    assert value == pytest.approx([first, math.log1p(math.exp(-(1 - 2)))], rel=1e-6)


@pytest.mark.parametrize("name", SIGMOIDS)
def test_without_a_margin_scores_change_no_bit(name: str) -> None:
    logps = logps_of((-6.0, -16.0, 3, 4), (-6.0, -5.0, 3, 4))
    unscored = PairLogps(**vars(logps) | {"scores": None})
    loss = LossConfig(name=name)  # type: ignore[arg-type]
    with_scores, without = (pair_terms(values, loss).preference for values in (logps, unscored))
    assert torch.equal(with_scores, without)


def test_rewards_of_a_ranking_are_those_of_cpo() -> None:
    logps = lists_of([[-2.0, -3.0]], [[1.0, 0.5, 0.2]])
    terms = pair_terms(logps, LossConfig(name="plackett-luce", beta=0.5))
    assert terms.rewards_chosen.tolist() == [-0.5]
    assert terms.rewards_rejected.tolist() == [[-1.0, -1.5]]
