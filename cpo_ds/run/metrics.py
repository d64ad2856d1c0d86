"""Metrics of a step: columns of each pair, summed over micro-batches and ranks, then averaged."""

from __future__ import annotations

import torch

from cpo_ds.losses import PairTerms, nll_denominator, nll_weight
from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.settings.objective import LossConfig

# Columns of the sums that travel from micro-batches to the log in one tensor.
COLUMNS = ("preference", "nll", "correct", "margin", "logp_chosen", "logp_rejected")


def pair_columns(terms: PairTerms, logps: PairLogps) -> torch.Tensor:
    """The columns of each pair, detached: [P, len(COLUMNS)], float64 so that sums are exact."""
    margin = terms.rewards_chosen - terms.rewards_rejected
    columns = (terms.preference, terms.nll, margin > 0, margin, logps.chosen, logps.rejected)
    return torch.stack([column.detach().double() for column in columns], dim=1)


def summarize(sums: list[float], totals: StepTotals, loss: LossConfig) -> dict[str, float]:
    """Turns sums of `COLUMNS` over the global batch into metrics by their names in the log."""
    by_name = dict(zip(COLUMNS, sums, strict=True))
    preference = by_name["preference"] / totals.pairs
    nll = by_name["nll"] / nll_denominator(totals, loss)
    return {
        "loss": preference + nll_weight(loss) * nll,
        "preference_loss": preference,
        "nll_loss": nll,
        "reward_accuracy": by_name["correct"] / totals.pairs,
        "reward_margin": by_name["margin"] / totals.pairs,
        "logp_chosen": by_name["logp_chosen"] / totals.pairs,
        "logp_rejected": by_name["logp_rejected"] / totals.pairs,
    }
