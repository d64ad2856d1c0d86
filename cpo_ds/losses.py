"""Preference objectives as pure functions of the log-probs of chosen and rejected completions.

Each preference function takes the log-probs of chosen completions, [P, 1], of rejected ones,
[P, K], and the `loss` section of the configuration. It returns a term for each comparison, [P, K].
`step_share` turns the terms of a micro-batch into its share of the loss of the global batch: the
shares of all micro-batches and ranks add up to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.settings.objective import LossConfig


@dataclass(frozen=True)
class PairTerms:
    """The terms of one micro-batch's loss, per pair: float32.

    `rewards_*` are the implicit rewards, detached: beta times the log-probs. For simpo and ipo the
    log-probs are averaged over tokens; for dpo those of the reference are subtracted.
    """

    preference: torch.Tensor  # [P], mean over the pair's comparisons
    nll: torch.Tensor  # [P], sum over tokens, or mean if loss.nll_reduction is "pair"
    rewards_chosen: torch.Tensor  # [P]
    rewards_rejected: torch.Tensor  # [P, K]


def averages_over_tokens(loss: LossConfig) -> bool:
    """Whether the preference term compares log-probs per token rather than per completion."""
    return loss.name in ("simpo", "cpo-simpo", "ipo")


def nll_weight(loss: LossConfig) -> float:
    """The weight alpha of the NLL term: 0 for simpo and dpo, and 1 for sft, which is NLL alone."""
    return {"simpo": 0.0, "dpo": 0.0, "sft": 1.0}.get(loss.name, loss.alpha)


def cpo(chosen: torch.Tensor, rejected: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """-log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x))): arXiv 2401.08417, eq. 4.

    With label smoothing eps, (1 - eps) of that and eps of the same with the sign turned round.
    """
    return _smooth_sigmoid(chosen - rejected, loss)


def simpo(chosen: torch.Tensor, rejected: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """-log sigmoid(beta (mean log-prob chosen - rejected) - gamma): arXiv 2405.14734, eq. 6."""
    return _smooth_sigmoid(chosen - rejected - loss.gamma / loss.beta, loss)


def ipo(chosen: torch.Tensor, rejected: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """(mean log-prob chosen - rejected - 1 / (2 beta))^2: arXiv 2310.12036, eq. 17."""
    return (chosen - rejected - 1 / (2 * loss.beta)).square()


def dpo(chosen: torch.Tensor, rejected: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """-log sigmoid(beta (log-ratio chosen - log-ratio rejected)): arXiv 2305.18290, eq. 7.

    A log-ratio is log pi(y|x) - log pi_reference(y|x). Label smoothing as in `cpo`.
    """
    return _smooth_sigmoid(chosen - rejected, loss)


def hinge(chosen: torch.Tensor, rejected: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    """max(0, 1 - beta (log pi(y_w|x) - log pi(y_l|x))): arXiv 2305.10425, as in SLiC."""
    return F.relu(1 - loss.beta * (chosen - rejected))


def arpo(logps: PairLogps, loss: LossConfig) -> torch.Tensor:
    """CPO with adaptive rejection, as coded for X-ALMA (arXiv 2410.03115).

    d = |mean log-prob chosen - mean log-prob rejected|, tau = min(c1 exp(c2 d) - 1, 1); the
    rejected log-prob counts tau times, so that a near-equal rejected translation is not pushed
    away. c1, c2 are `loss.arpo_scale`, `loss.arpo_rate`.
    """
    per_token = (logps.chosen / logps.num_chosen_tokens)[:, None]
    gap = (per_token - logps.rejected / logps.num_rejected_tokens).abs()
    # The bound goes inside: exp of a large gap would be inf, and inf * 0 a NaN gradient.
    tau = loss.arpo_scale * (loss.arpo_rate * gap).clamp(max=20.0).exp() - 1
    tau = tau.clamp(min=loss.arpo_floor, max=1.0)
    tau = tau.detach() if loss.arpo_detach else tau
    return _smooth_sigmoid(logps.chosen[:, None] - tau * logps.rejected, loss)


def _smooth_sigmoid(logits: torch.Tensor, loss: LossConfig) -> torch.Tensor:
    right, wrong = F.logsigmoid(loss.beta * logits), F.logsigmoid(-loss.beta * logits)
    return -(1 - loss.label_smoothing) * right - loss.label_smoothing * wrong


_OF_LOGPS: dict[str, Callable[[torch.Tensor, torch.Tensor, LossConfig], torch.Tensor]] = {
    "cpo": cpo,
    "simpo": simpo,
    "cpo-simpo": simpo,
    "ipo": ipo,
    "hinge": hinge,
    "dpo": dpo,
    "dpo-nll": dpo,
}


def pair_terms(logps: PairLogps, loss: LossConfig) -> PairTerms:
    """Applies the configured objective to one micro-batch."""
    chosen, rejected = logps.chosen, logps.rejected
    if averages_over_tokens(loss):
        chosen = chosen / logps.num_chosen_tokens
        rejected = rejected / logps.num_rejected_tokens
    if loss.has_reference:
        assert logps.reference_chosen is not None and logps.reference_rejected is not None
        chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected
    if loss.name == "sft":
        preference = torch.zeros_like(rejected)
    elif loss.name == "arpo":
        preference = arpo(logps, loss)
    else:
        preference = _OF_LOGPS[loss.name](chosen[:, None], rejected, loss)
    nll = -logps.chosen
    return PairTerms(
        preference=(preference * logps.comparison_shares).sum(1),
        nll=nll / logps.num_chosen_tokens if loss.nll_reduction == "pair" else nll,
        rewards_chosen=loss.beta * chosen.detach(),
        rewards_rejected=loss.beta * rejected.detach(),
    )


def nll_denominator(totals: StepTotals, loss: LossConfig) -> int:
    """The denominator of the NLL terms: the chosen tokens or the pairs of the global batch."""
    return totals.pairs if loss.nll_reduction == "pair" else totals.chosen_tokens


def step_share(terms: PairTerms, totals: StepTotals, loss: LossConfig) -> torch.Tensor:
    """One micro-batch's share of the step's loss, a scalar; all shares add up to the loss."""
    share = terms.preference.sum() / totals.pairs
    weight = nll_weight(loss)
    if weight:
        share = share + weight * terms.nll.sum() / nll_denominator(totals, loss)
    return share
