"""Metrics of a step: columns of each pair, summed over micro-batches and ranks, then averaged."""

from __future__ import annotations

import torch

from cpo_ds.losses import PairTerms, nll_denominator, nll_weight
from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.settings.objective import LossConfig

# Columns of the sums that travel from micro-batches to the log in one tensor.
COLUMNS = ("preference", "nll", "correct", "margin", "logp_chosen", "logp_rejected")


def pair_columns(terms: PairTerms, logps: PairLogps) -> torch.Tensor:
    """The columns of each pair, detached: [P, len(COLUMNS)], float64 so that sums are exact.

    Those of rejected completions are sums over the pair's comparisons.
    """
    is_comparison = logps.comparison_shares > 0
    margin = torch.where(is_comparison, terms.rewards_chosen[:, None] - terms.rewards_rejected, 0.0)
    of_comparisons = [
        column.detach().double().sum(1) for column in (margin > 0, margin, logps.rejected)
    ]
    correct, margins, rejected = of_comparisons
    of_pairs = [column.detach().double() for column in (terms.preference, terms.nll, logps.chosen)]
    preference, nll, chosen = of_pairs
    return torch.stack([preference, nll, correct, margins, chosen, rejected], dim=1)


def summarize(sums: list[float], totals: StepTotals, loss: LossConfig) -> dict[str, float]:
    """Turns sums of `COLUMNS` over the global batch into metrics by their names in the log."""
    by_name = dict(zip(COLUMNS, sums, strict=True))
    preference = by_name["preference"] / totals.pairs
    nll = by_name["nll"] / nll_denominator(totals, loss)
    return {
        "loss": preference + nll_weight(loss) * nll,
        "preference_loss": preference,
        "nll_loss": nll,
        "reward_accuracy": by_name["correct"] / totals.comparisons,
        "reward_margin": by_name["margin"] / totals.comparisons,
        "logp_chosen": by_name["logp_chosen"] / totals.pairs,
        "logp_rejected": by_name["logp_rejected"] / totals.comparisons,
    }
