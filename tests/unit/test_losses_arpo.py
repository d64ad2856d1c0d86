"""ARPO: hand-worked numbers, the published code, the adaptive factor tau."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import NARROW, PAIRS, WIDE, logps_of, preference_of

from cpo_ds.losses import arpo, pair_terms
from cpo_ds.schema import PairLogps
from cpo_ds.settings.objective import LossConfig


def test_arpo_by_hand() -> None:
    """Means -2 and -2.5: d = 0.5, tau = 0.9 e^0.2 - 1 = 0.0992625.

    -6 + 0.0992625 x 10 = -5.007375; log(1 + e^0.5007375) = 0.974536.
    Means -2 and -4: d = 2, 0.9 e^0.8 - 1 = 1.00299, cut to 1: the same as cpo.
    """
    assert preference_of(NARROW, name="arpo") == pytest.approx(0.974536, abs=1e-6)
    assert preference_of(WIDE, name="arpo") == pytest.approx(0.31326168751)


def arpo_as_published(logps: PairLogps, loss: LossConfig) -> torch.Tensor:
    """The lines of X-ALMA's trainer: no lower bound, the gradient flows through tau."""
    chosen, n_chosen = logps.chosen[:, None], logps.num_chosen_tokens[:, None]
    d = torch.abs(chosen / n_chosen - logps.rejected / logps.num_rejected_tokens)
    tau = torch.clamp(loss.arpo_scale * torch.exp(loss.arpo_rate * d) - 1, max=1.0)
    logits = chosen - tau * logps.rejected
    return (
        -torch.nn.functional.logsigmoid(loss.beta * logits) * (1 - loss.label_smoothing)
        - torch.nn.functional.logsigmoid(-loss.beta * logits) * loss.label_smoothing
    )


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.sampled_from([0.0, 0.1]), st.sampled_from([(0.9, 0.4), (1.0, 1.5)]))
def test_arpo_equals_the_published_code(
    pairs: list[tuple[float, float, int, int]], smoothing: float, constants: tuple[float, float]
) -> None:
    loss = LossConfig(
        name="arpo",
        label_smoothing=smoothing,
        arpo_scale=constants[0],
        arpo_rate=constants[1],
    )
    ours, theirs = logps_of(*pairs, grad=True), logps_of(*pairs, grad=True)
    actual, expected = arpo(ours, loss), arpo_as_published(theirs, loss)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    actual.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.chosen.grad, theirs.chosen.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.rejected.grad, theirs.rejected.grad, rtol=1e-9, atol=1e-12)


def tau_of(gap: float, **options: Any) -> float:
    """tau read back from the loss: chosen -0, rejected -gap with one token each, beta 1."""
    loss = LossConfig(name="arpo", beta=1.0, **options)
    value = arpo(logps_of((0.0, -gap, 1, 1)), loss).item()
    return -math.log(math.expm1(value)) / gap  # softplus(-tau gap) inverted


def test_tau_by_hand() -> None:
    """0.9 e^(0.4 d) - 1: -0.1 near d = 0, 0 at d = 0.2634, 1 from d = 1.9963 on."""
    assert tau_of(1e-3) == pytest.approx(-0.1 + 0.9 * 0.4e-3, abs=1e-6)
    assert tau_of(math.log(1 / 0.9) / 0.4) == pytest.approx(0.0, abs=1e-9)
    assert tau_of(1.0) == pytest.approx(0.9 * math.exp(0.4) - 1)
    saturation = math.log(2 / 0.9) / 0.4
    assert saturation == pytest.approx(1.9963, abs=1e-4)
    assert tau_of(saturation - 0.01) < 0.999
    assert tau_of(saturation + 0.01) == pytest.approx(1.0)


def test_tau_floor() -> None:
    assert tau_of(1e-2, arpo_floor=0.0) == pytest.approx(0.0, abs=1e-9)
    assert tau_of(1e-2, arpo_floor=-0.05) == pytest.approx(-0.05)
    assert tau_of(1.0, arpo_floor=0.0) == pytest.approx(0.9 * math.exp(0.4) - 1)


def test_gradient_through_tau_and_without_it() -> None:
    """One token each, chosen 0, rejected r = -1: d = 1, tau = 0.9 e^0.4 - 1, beta 1.

    logits = -tau r, d loss / d logits = -sigmoid(-logits), d tau / d d = 0.36 e^0.4.
    By rejected: d logits = -tau - r dtau/dd dd/dr, with dd/dr = -1, so -tau - 0.36 e^0.4;
    detached: -tau. By chosen: 1 - r dtau/dd = 1 + 0.36 e^0.4; detached: 1.
    """
    tau, slope = 0.9 * math.exp(0.4) - 1, 0.36 * math.exp(0.4)
    outer = -1 / (1 + math.exp(tau))
    for detach, by_chosen, by_rejected in ((False, 1 + slope, -tau - slope), (True, 1.0, -tau)):
        logps = logps_of((0.0, -1.0, 1, 1), grad=True)
        arpo(logps, LossConfig(name="arpo", beta=1.0, arpo_detach=detach)).sum().backward()
        assert logps.chosen.grad is not None and logps.rejected.grad is not None
        assert logps.chosen.grad.item() == pytest.approx(outer * by_chosen)
        assert logps.rejected.grad.item() == pytest.approx(outer * by_rejected)


@pytest.mark.parametrize("gap", [5.0, 300.0, 5000.0])
def test_saturated_arpo_is_cpo_and_never_nan(gap: float) -> None:
    gradients = []
    for name in ("arpo", "cpo"):
        logps = logps_of((-1.0, -1.0 - gap, 1, 1), (-1.0 - gap, -1.0, 1, 1), grad=True)
        logps = PairLogps(*(getattr(logps, f.name).float() for f in fields(PairLogps)))
        logps.chosen.retain_grad()
        logps.rejected.retain_grad()
        pair_terms(logps, LossConfig(name=name)).preference.sum().backward()
        gradients += [logps.chosen.grad, logps.rejected.grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    torch.testing.assert_close(gradients[:2], gradients[2:])
