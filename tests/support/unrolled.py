"""Losses and gradients of rows by transformers, peft and torch alone, one text after the other.

Each comparison of a row is a pair of texts, the NLL of the chosen text counts once. Everything is
computed in float64. Nothing of cpo_ds is imported: not its tokens, layouts, losses or settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch.nn.functional import logsigmoid

Row = dict[str, Any]  # prompt, chosen, and rejected: a text or a list of texts


@dataclass(frozen=True)
class Scored:
    """The log-prob of a completion, a scalar, and its number of tokens."""

    logp: torch.Tensor
    tokens: int
    reference: torch.Tensor  # the log-prob before training

    @property
    def mean(self) -> torch.Tensor:
        """The log-prob of a token."""
        return self.logp / self.tokens

    @property
    def ratio(self) -> torch.Tensor:
        """The log-ratio with the reference."""
        return self.logp - self.reference


def _sigmoid(logits: torch.Tensor, beta: float, smoothing: float = 0.0) -> torch.Tensor:
    return -(1 - smoothing) * logsigmoid(beta * logits) - smoothing * logsigmoid(-beta * logits)


def _arpo(chosen: Scored, rejected: Scored, beta: float) -> torch.Tensor:
    tau = 0.9 * torch.exp(0.4 * (chosen.mean - rejected.mean).abs()) - 1
    return _sigmoid(chosen.logp - tau.clamp(max=1.0) * rejected.logp, beta)


Preference = Callable[[Scored, Scored], torch.Tensor]
# Objective -> its settings, the preference term of a pair, and the weight of the NLL term.
OBJECTIVES: dict[str, tuple[dict[str, Any], Preference, float]] = {
    "cpo": (
        {"name": "cpo", "beta": 0.3, "alpha": 0.7, "label_smoothing": 0.1},
        lambda c, r: _sigmoid(c.logp - r.logp, 0.3, 0.1),
        0.7,
    ),
    "simpo": (
        {"name": "simpo", "beta": 2.0, "gamma": 0.5},
        lambda c, r: _sigmoid(c.mean - r.mean - 0.25, 2.0),
        0.0,
    ),
    "cpo-simpo": (
        {"name": "cpo-simpo", "beta": 2.0, "gamma": 0.5, "alpha": 0.7},
        lambda c, r: _sigmoid(c.mean - r.mean - 0.25, 2.0),
        0.7,
    ),
    "ipo": (
        {"name": "ipo", "beta": 0.4, "alpha": 0.5},
        lambda c, r: (c.mean - r.mean - 1.25) ** 2,
        0.5,
    ),
    "hinge": (
        {"name": "hinge", "beta": 0.3},
        lambda c, r: torch.relu(1 - 0.3 * (c.logp - r.logp)),
        1.0,
    ),
    "arpo": ({"name": "arpo", "beta": 0.2}, lambda c, r: _arpo(c, r, 0.2), 1.0),
    "dpo": ({"name": "dpo", "beta": 0.5}, lambda c, r: _sigmoid(c.ratio - r.ratio, 0.5), 0.0),
    "dpo-nll": (
        {"name": "dpo-nll", "beta": 0.5, "alpha": 0.3},
        lambda c, r: _sigmoid(c.ratio - r.ratio, 0.5),
        0.3,
    ),
    "sft": ({"name": "sft"}, lambda c, r: torch.zeros((), dtype=torch.float64), 1.0),
}


class Unrolled:
    """A model folder, perhaps with a LoRA adapter, that scores rows text by text."""

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float64, attn_implementation="eager"
        )
        if adapter is not None:
            model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
        self.model = model.double().eval()  # an adapter of peft begins with dropout on

    def load(self, weights: dict[str, torch.Tensor]) -> Unrolled:
        """Gives parameters their values, by name."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        return self

    def score(self, prompt: str, text: str) -> tuple[torch.Tensor, int]:
        """The log-prob of a completion with its end-of-sequence token, and its number of tokens."""
        tokens = self.tokenizer(prompt + text, add_special_tokens=False).input_ids
        alone = self.tokenizer(prompt, add_special_tokens=False).input_ids
        # A merge at the boundary may have changed the last tokens of the prompt.
        start = next(
            (i for i, (a, b) in enumerate(zip(alone, tokens, strict=False)) if a != b), len(alone)
        )
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = torch.tensor([[bos, *tokens, eos]])
        logps = self.model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        of_tokens = logps.gather(-1, ids[0, 1:, None])[start:, 0]
        return of_tokens.sum(), len(of_tokens)

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients of trained parameters, by name."""
        trained = self.model.named_parameters()
        return {name: p.grad for name, p in trained if p.requires_grad and p.grad is not None}


def loss_of(
    rows: list[Row], policy: Unrolled, before: Unrolled, objective: str, nll_reduction: str
) -> torch.Tensor:
    """The loss of a global batch: the mean over rows of each row's mean over its pairs, and NLL."""
    _, preference_of, alpha = OBJECTIVES[objective]
    preferences, nll, tokens = [], [], 0

    def scored(prompt: str, text: str) -> Scored:
        with torch.no_grad():
            reference, _ = before.score(prompt, text)
        return Scored(*policy.score(prompt, text), reference)

    for row in rows:
        rejected = [row["rejected"]] if isinstance(row["rejected"], str) else row["rejected"]
        chosen = scored(row["prompt"], row["chosen"])
        pairs = [preference_of(chosen, scored(row["prompt"], text)) for text in rejected]
        preferences.append(torch.stack(pairs).mean())
        nll.append(-chosen.mean if nll_reduction == "pair" else -chosen.logp)
        tokens += chosen.tokens
    denominator = len(rows) if nll_reduction == "pair" else tokens
    total: torch.Tensor = torch.stack(preferences).mean()
    assert not math.isnan(total.item())
    return total + alpha * torch.stack(nll).sum() / denominator
