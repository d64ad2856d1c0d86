"""Metrics of a step by hand, and the logged loss against the minimized one."""

from __future__ import annotations

import pytest
import torch

from cpo_ds.losses import pair_terms, step_share
from cpo_ds.run.metrics import COLUMNS, pair_columns, summarize
from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.settings.objective import LossConfig

TOTALS = StepTotals(
    pairs=4, comparisons=4, chosen_tokens=10, scored_tokens=25, unique_tokens=70, padded_tokens=99
)
SUMS = dict(zip(COLUMNS, (2.0, 30.0, 3.0, 6.0, -30.0, -50.0), strict=True))


def test_summarize_by_hand() -> None:
    """preference 2 / 4, nll 30 / 10 tokens, 3 of 4 right, margin 6 / 4, log-probs over 4 pairs."""
    assert summarize(list(SUMS.values()), TOTALS, LossConfig(alpha=0.5)) == {
        "loss": 0.5 + 0.5 * 3.0,
        "preference_loss": 0.5,
        "nll_loss": 3.0,
        "reward_accuracy": 0.75,
        "reward_margin": 1.5,
        "logp_chosen": -7.5,
        "logp_rejected": -12.5,
    }
    by_pair = summarize(list(SUMS.values()), TOTALS, LossConfig(nll_reduction="pair"))
    assert (by_pair["nll_loss"], by_pair["loss"]) == (7.5, 8.0)
    simpo = summarize(list(SUMS.values()), TOTALS, LossConfig(name="simpo"))
    assert (simpo["nll_loss"], simpo["loss"]) == (3.0, 0.5)  # told, but not part of the loss


@pytest.mark.parametrize("name", ["cpo", "simpo", "cpo-simpo", "arpo", "ipo", "hinge", "sft"])
def test_the_loss_that_is_logged_is_the_loss_that_is_minimized(name: str) -> None:
    loss = LossConfig(name=name)
    logps = PairLogps(
        torch.tensor([-6.0, -9.0, -3.0]),
        torch.tensor([[-16.0], [-8.0], [-3.0]]),
        torch.tensor([3.0, 4.0, 2.0]),
        torch.tensor([[4.0], [4.0], [2.0]]),
        torch.ones(3, 1),
    )
    totals = StepTotals(3, 3, 9, 19, 30, 40)
    terms = pair_terms(logps, loss)
    columns = pair_columns(terms, logps)
    assert columns.shape == (3, len(COLUMNS)) and columns.dtype == torch.float64
    logged = summarize(columns.sum(0).tolist(), totals, loss)
    assert logged["loss"] == pytest.approx(step_share(terms, totals, loss).item(), rel=1e-6)
    assert logged["reward_accuracy"] == pytest.approx(1 / 3)  # a tie is not right
    assert logged["logp_chosen"] == pytest.approx(-6.0)


def test_columns_carry_no_gradient() -> None:
    leaf = torch.tensor([-6.0], requires_grad=True)
    counts = torch.tensor([3.0]), torch.tensor([[3.0]]), torch.ones(1, 1)
    logps = PairLogps(leaf, leaf[:, None] * 2, *counts)
    assert not pair_columns(pair_terms(logps, LossConfig()), logps).requires_grad
