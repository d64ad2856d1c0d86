"""Preference objectives as pure functions of the log-probs of chosen and rejected completions.

Each pairwise function takes the log-probs of chosen completions, [P, 1], of rejected ones, [P, K],
and the `loss` section of the configuration. It returns a term for each comparison, [P, K]. Those of
chosen completions are [P, K] if scores set a target margin for each comparison (`_less_margins`).
`plackett_luce` takes all completions of a pair together and returns a term for each pair, [P].
`step_share` turns the terms of a micro-batch into its share of the loss of the global batch: the
shares of all micro-batches and ranks add up to it.
"""

from __future__ import annotations

import math
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

    preference: torch.Tensor  # [P], mean over the pair's comparisons, or of its ranking
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
    chosen = _less_margins(logps.chosen[:, None], logps, loss)
    return _smooth_sigmoid(chosen - tau * logps.rejected, loss)


def _less_margins(chosen: torch.Tensor, logps: PairLogps, loss: LossConfig) -> torch.Tensor:
    """The log-probs of chosen completions, [P, 1], less the target margins that scores set, [P, K].

    Inside the sigmoid this subtracts `loss.score_margin` times the difference of the scores, an
    offset as in arXiv 2402.10571.
    """
    if not loss.score_margin:
        return chosen
    assert logps.scores is not None
    margins = loss.score_margin * (logps.scores[:, :1] - logps.scores[:, 1:])
    return chosen - margins / loss.beta


def plackett_luce(
    logits: torch.Tensor, scores: torch.Tensor, is_there: torch.Tensor
) -> torch.Tensor:
    """-log-likelihood that completions are ranked as their scores say, [P]; all others [P, N].

    In the model of Luce (1959) and Plackett (1975) the best of N completions is drawn with
    probabilities proportional to exp(logit), then the next best of those left: the product over
    completions i of exp(logit_i) / (exp(logit_i) + sum of exp(logit_j) over all j ranked below i).
    arXiv 2305.18290, appendix A.3, has it for DPO. Completions with equal scores get no order among
    themselves: the likelihood is that of all rankings that agree with the scores, together. Those
    at the bottom add nothing. Where `is_there` is False there is no completion.
    """
    below = (scores[:, None, :] < scores[:, :, None]) & is_there[:, None, :]  # [P, N, N]: j below i
    tied = (scores[:, None, :] == scores[:, :, None]) & is_there[:, None, :]
    rest = torch.where(below, logits[:, None, :], _NOTHING).logsumexp(2)
    ahead = torch.where(
        tied.sum(2) == 1,
        F.logsigmoid(logits - rest),
        _log_all_before(logits[:, None, :] - rest[:, :, None], tied),
    )
    # One term for each level of scores, that of its first completion.
    is_first = ~(tied.tril(-1)).any(2)
    return -torch.where(is_there & is_first & below.any(2), ahead, 0.0).sum(1)


_NOTHING = -1e30  # a logit whose exp is 0; an infinite one would give NaN gradients


def _log_all_before(gaps: torch.Tensor, tied: torch.Tensor) -> torch.Tensor:
    """The log-probability that all of a group are drawn before all of the rest, [P, N].

    `gaps` are the members' logits less the rest's log-sum-exp, `tied` says who is a member, both
    [P, N, N]. Of exponential waiting times with the rates exp(logit), the shortest comes first with
    the model's probabilities. So the probability is the mean of the product of 1 - exp(-exp(gap) t)
    over an exponential time t, the rest's: the exact treatment of ties in Cox's regression
    (Kalbfleisch and Prentice 1973), whose likelihood has the same form. The integral over log t by
    the trapezoidal rule, since its error falls exponentially with the step: far below float32's
    rounding.
    """
    most = gaps.shape[2]
    step = min(0.2, 0.9 / math.sqrt(most))  # the more members, the narrower the peak
    end = math.log(most + 12 * math.sqrt(most) + 40)
    log_t = torch.arange(-32.0, end, step, dtype=gaps.dtype, device=gaps.device)
    # log(1 - exp(-exp(y))), which is 0 for large y and y - exp(y) / 2 for small ones. What makes y
    # very small is added after the integral, in which its digits would be lost.
    gaps = gaps[..., None]
    low, y = gaps.clamp(max=0.0), gaps + log_t
    middle = y.clamp(-15.0, 5.0)
    of_small = gaps - low + log_t - y.clamp(max=-15.0).exp() / 2
    log_before = torch.where(y < -15.0, of_small, (-torch.expm1(-middle.exp())).log() - low)
    log_product = torch.where(tied[..., None], log_before, 0.0).sum(2)
    integral = (log_product + log_t - log_t.exp()).logsumexp(2) + math.log(step)
    return integral + torch.where(tied, low[..., 0], 0.0).sum(2)


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
    elif loss.name == "plackett-luce":
        preference = _ranked(logps, loss)
    else:
        better = _less_margins(chosen[:, None], logps, loss)
        preference = _OF_LOGPS[loss.name](better, rejected, loss)
    if preference.dim() == 2:
        preference = (preference * logps.comparison_shares).sum(1)
    nll = -logps.chosen
    return PairTerms(
        preference=preference,
        nll=nll / logps.num_chosen_tokens if loss.nll_reduction == "pair" else nll,
        rewards_chosen=loss.beta * chosen.detach(),
        rewards_rejected=loss.beta * rejected.detach(),
    )


def _ranked(logps: PairLogps, loss: LossConfig) -> torch.Tensor:
    """`plackett_luce` of the completions of each pair, with logits beta log pi(y|x), [P]."""
    assert logps.scores is not None
    is_rejected = logps.comparison_shares > 0
    is_there = torch.cat([torch.ones_like(is_rejected[:, :1]), is_rejected], dim=1)
    # Less the chosen one's, which changes no ranking and keeps digits.
    gaps = loss.beta * (logps.rejected - logps.chosen[:, None])
    return plackett_luce(F.pad(gaps, (1, 0)), logps.scores, is_there)


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
