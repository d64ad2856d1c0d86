"""Objectives: hand-worked numbers, and shares that add up however a step is cut."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import NAMES, NARROW, PAIRS, WIDE, logps_of, part, preference_of, totals_of

from cpo_ds.losses import (
    PairTerms,
    averages_over_tokens,
    nll_denominator,
    nll_weight,
    pair_terms,
    step_share,
)
from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.settings.objective import LossConfig


def test_cpo_by_hand() -> None:
    """0.1 (-6 + 16) = 1: log(1 + e^-1) = 0.31326; smoothed 0.9 of it + 0.1 log(1 + e) (1.31326).

    0.9 x 0.31326 + 0.1 x 1.31326 = 0.28194 + 0.13133 = 0.41326.
    """
    assert preference_of(WIDE, name="cpo") == pytest.approx(0.31326168751)
    assert preference_of(WIDE, name="cpo", label_smoothing=0.1) == pytest.approx(0.41326168751)
    assert preference_of((-5, -5, 2, 2), name="cpo") == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["simpo", "cpo-simpo"])
def test_simpo_by_hand(name: str) -> None:
    """Means -2 and -4. beta 0.1, gamma 0.5: 0.2 - 0.5 = -0.3, log(1 + e^0.3) = 0.85436.

    beta 2, gamma 1: 4 - 1 = 3, log(1 + e^-3) = 0.04859.
    """
    assert preference_of(WIDE, name=name) == pytest.approx(0.85435524447)
    assert preference_of(WIDE, name=name, beta=2.0, gamma=1.0) == pytest.approx(0.04858735157)


def test_ipo_by_hand() -> None:
    """Means -2 and -4, beta 0.1: (2 - 1 / 0.2)^2 = 9."""
    assert preference_of(WIDE, name="ipo") == pytest.approx(9.0)


@pytest.mark.parametrize("name", ["dpo", "dpo-nll"])
def test_dpo_by_hand(name: str) -> None:
    """Log-ratios -6 + 4 = -2 and -16 + 7 = -9: 0.1 (-2 + 9) = 0.7, log(1 + e^-0.7) = 0.40319.

    Smoothed 0.9 of it + 0.1 log(1 + e^0.7) (1.10319): 0.47319. Rewards -0.2 and -0.9.
    """
    terms = pair_terms(logps_of(WIDE), LossConfig(name=name))
    assert terms.preference.item() == pytest.approx(0.40318604888)
    assert terms.rewards_chosen.item() == pytest.approx(-0.2)
    assert terms.rewards_rejected.item() == pytest.approx(-0.9)
    assert terms.nll.item() == 6.0  # of the policy alone
    smoothed = preference_of(WIDE, name=name, label_smoothing=0.1)
    assert smoothed == pytest.approx(0.47318604888)


def test_hinge_by_hand() -> None:
    """beta 0.05: 1 - 0.05 x 10 = 0.5; beta 0.1: 0; beta 0.2: still 0."""
    for beta, expected in ((0.05, 0.5), (0.1, 0.0), (0.2, 0.0)):
        assert preference_of(WIDE, name="hinge", beta=beta) == pytest.approx(expected)


def test_sft_has_the_nll_alone() -> None:
    terms = pair_terms(logps_of(WIDE), LossConfig(name="sft"))
    assert (terms.preference.item(), terms.nll.item()) == (0.0, 6.0)


TWO = ((-6.0, -16.0, 3, 4), (-10.0, -20.0, 2, 5))


@pytest.mark.parametrize(
    ("name", "reduction", "expected"),
    [
        ("cpo", "token", 0.31326168751 + 2.0 * 16 / 5),  # both pairs have a margin of 10
        ("cpo", "pair", 0.31326168751 + 2.0 * (6 / 3 + 10 / 2) / 2),
        ("sft", "token", 16 / 5),
        ("sft", "pair", (6 / 3 + 10 / 2) / 2),
    ],
)
def test_whole_loss_by_hand(name: str, reduction: str, expected: float) -> None:
    loss = LossConfig(
        name=name, nll_reduction=reduction, **({"alpha": 2.0} if name == "cpo" else {})
    )  # type: ignore[arg-type]
    logps = logps_of(*TWO)
    share = step_share(pair_terms(logps, loss), totals_of(logps), loss)
    assert share.shape == () and share.item() == pytest.approx(expected)


def test_what_each_objective_averages_and_weighs() -> None:
    assert [name for name in NAMES if averages_over_tokens(LossConfig(name=name))] == [
        "simpo",
        "cpo-simpo",
        "ipo",
    ]
    weights = {name: nll_weight(LossConfig(name=name)) for name in NAMES}
    assert weights == dict.fromkeys(NAMES, 1.0) | {"simpo": 0.0, "dpo": 0.0}
    assert nll_weight(LossConfig(alpha=0.25)) == 0.25
    totals = StepTotals(
        pairs=3, comparisons=3, chosen_tokens=7, scored_tokens=0, unique_tokens=0, padded_tokens=0
    )
    assert nll_denominator(totals, LossConfig()) == 7
    assert nll_denominator(totals, LossConfig(nll_reduction="pair")) == 3


def test_rewards_are_beta_times_log_probs_and_carry_no_gradient() -> None:
    for name, chosen, rejected in (("cpo", -6.0, -16.0), ("arpo", -6.0, -16.0), ("ipo", -2, -4)):
        terms = pair_terms(logps_of(WIDE, grad=True), LossConfig(name=name, beta=0.5))
        assert (terms.rewards_chosen.item(), terms.rewards_rejected.item()) == (
            pytest.approx(0.5 * chosen),
            pytest.approx(0.5 * rejected),
        )
        assert not terms.rewards_chosen.requires_grad and not terms.rewards_rejected.requires_grad
        assert terms.preference.requires_grad


def cut(total: int, breaks: list[int]) -> list[list[int]]:
    """Consecutive groups of range(total) that end at the breaks; some may be empty."""
    ends = sorted(min(b, total) for b in breaks)
    return [list(range(a, b)) for a, b in zip([0, *ends], [*ends, total], strict=True)]


@settings(max_examples=80, deadline=None)
@given(
    pairs=PAIRS,
    breaks=st.lists(st.integers(0, 12), max_size=6),
    name=st.sampled_from(NAMES),
    reduction=st.sampled_from(["token", "pair"]),
)
def test_shares_add_up_to_the_loss_however_a_step_is_cut(
    pairs: list[tuple[float, float, int, int]], breaks: list[int], name: str, reduction: str
) -> None:
    has_nll = name not in ("simpo", "dpo")
    loss = LossConfig(name=name, **({"nll_reduction": reduction} if has_nll else {}))
    whole, pieces = logps_of(*pairs, grad=True), logps_of(*pairs, grad=True)
    totals = totals_of(whole)
    expected = step_share(pair_terms(whole, loss), totals, loss)
    shares = [
        step_share(pair_terms(part(pieces, group), loss), totals, loss)
        for group in cut(len(pairs), breaks)
    ]
    assert torch.stack(shares).sum().item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    expected.backward()
    for share in shares:
        share.backward()  # one backward pass per micro-batch, as in training
    torch.testing.assert_close(pieces.chosen.grad, whole.chosen.grad, rtol=1e-12, atol=1e-14)
    if name != "sft":
        torch.testing.assert_close(pieces.rejected.grad, whole.rejected.grad, rtol=1e-12, atol=0)


def test_negative_control_the_mean_of_micro_batch_losses_differs() -> None:
    """The mean of the micro-batches' means, (6/3 + 10/2) / 2, is not 16/5."""
    logps, loss = logps_of(*TWO), LossConfig(name="sft")
    pieces = [part(logps, [0]), part(logps, [1])]
    own = [step_share(pair_terms(p, loss), totals_of(p), loss).item() for p in pieces]
    assert sum(own) / 2 == pytest.approx(3.5)
    whole = step_share(pair_terms(logps, loss), totals_of(logps), loss).item()
    assert whole == pytest.approx(3.2)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_stays_finite_and_float32(name: str) -> None:
    """Values stay finite in float32, for equal log-probs and for those as far apart as possible."""
    loss = LossConfig(name=name)
    logps = logps_of((-1e-6, -3000, 1, 300), (-3000, -1e-6, 300, 1), (-7, -7, 3, 3))
    logps = PairLogps(*(getattr(logps, f.name).float() for f in fields(PairLogps)))
    logps.chosen.requires_grad_()
    terms = pair_terms(logps, loss)
    for field in fields(PairTerms):
        value = getattr(terms, field.name)
        assert value.dtype == torch.float32 and value.isfinite().all()
        assert value.shape == ((3, 1) if field.name == "rewards_rejected" else (3,))
    step_share(terms, totals_of(logps), loss).backward()
    assert logps.chosen.grad is not None and logps.chosen.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_better_chosen_completion_never_costs(name: str) -> None:
    """More log-prob for chosen never raises the loss, except past ipo's target margin."""
    loss = LossConfig(name=name, **({"arpo_detach": True} if name == "arpo" else {}))
    logps = logps_of(WIDE, NARROW, (-30, -4, 5, 5), grad=True)
    step_share(pair_terms(logps, loss), totals_of(logps), loss).backward()
    assert logps.chosen.grad is not None and (logps.chosen.grad < 0).all()
