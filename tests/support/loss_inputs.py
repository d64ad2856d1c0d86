"""Log-probs of pairs by hand, as inputs of losses."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from hypothesis import strategies as st

from cpo_ds.losses import pair_terms
from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.settings.objective import LossConfig

NAMES = (
    "cpo", "simpo", "cpo-simpo", "arpo", "ipo", "hinge", "plackett-luce", "sft", "dpo", "dpo-nll",
)  # fmt: skip
DOUBLE = torch.float64


def logps_of(*pairs: tuple[float, float, int, int], grad: bool = False) -> PairLogps:
    """(log-prob of chosen, of rejected, tokens of chosen, of rejected) per pair, float64.

    Under the reference, chosen and rejected have log-probs of -4 and -7; their scores are 2 and 1.
    """
    chosen, rejected, n_chosen, n_rejected = (
        torch.tensor(column, dtype=DOUBLE) for column in zip(*pairs, strict=True)
    )
    rejected, n_rejected = rejected[:, None], n_rejected[:, None]
    reference = torch.full_like(chosen, -4.0), torch.full_like(rejected, -7.0)
    trained = chosen.requires_grad_(grad), rejected.requires_grad_(grad)
    scores = torch.tensor([2.0, 1.0], dtype=DOUBLE).expand(len(chosen), 2)
    shares = torch.ones_like(rejected)
    return PairLogps(*trained, n_chosen, n_rejected, shares, *reference, scores)


def totals_of(logps: PairLogps) -> StepTotals:
    chosen_tokens = int(logps.num_chosen_tokens.sum())
    scored = chosen_tokens + int(logps.num_rejected_tokens.sum())
    return StepTotals(len(logps.chosen), len(logps.chosen), chosen_tokens, scored, scored, scored)


def part(logps: PairLogps, indices: list[int]) -> PairLogps:
    return PairLogps(*(getattr(logps, field.name)[indices] for field in fields(PairLogps)))


# Per token: chosen -2 and -2, rejected -4 and -2.5.
WIDE, NARROW = (-6.0, -16.0, 3, 4), (-6.0, -10.0, 3, 4)


def preference_of(pair: tuple[float, float, int, int], **loss: Any) -> float:
    return pair_terms(logps_of(pair), LossConfig(**loss)).preference.item()


LOGP = st.floats(-300.0, -0.01)
PAIR = st.tuples(LOGP, LOGP, st.integers(1, 60), st.integers(1, 60))
PAIRS = st.lists(PAIR, min_size=1, max_size=12)
