"""Policies of one tiny model whose layers differ only in `model.kernels`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import random_pairs

from cpo_ds.data.pack import pack
from cpo_ds.model.load import load_policy
from cpo_ds.model.policy import PolicyModel
from cpo_ds.recipe import parse_config

ALL_LINEAR = {"rank": 4, "alpha": 6, "target_modules": "all-linear"}


def policy_with(folder: Path, kernels: str, lora: Any = None, **model: Any) -> PolicyModel:
    """The policy in `folder`, float32 unless told; a new adapter's B is not zero any more."""
    values = {
        "model": {"name_or_path": str(folder), "dtype": "float32", "kernels": kernels, **model},
        "data": {"format": "sample"},
        "lora": lora,
    }
    policy, _ = load_policy(parse_config(values, "test"), device=torch.device("cpu"))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return policy


def replaced(policy: PolicyModel) -> list[str]:
    """Names of the modules that have a forward pass of `fused_layers`."""
    modules = policy.causal_lm.named_modules()
    return [name for name, module in modules if "forward" in vars(module)]


def results(policy: PolicyModel, *, pairs: int = 5, seed: int = 3) -> dict[str, torch.Tensor]:
    """Log-probs of random pairs, and the gradient of each trained parameter."""
    policy.zero_grad()
    torch.manual_seed(seed)
    chosen, rejected = policy(pack(random_pairs(pairs, seed=seed), tuple(range(pairs))))
    (chosen - 0.7 * rejected).square().sum().backward()
    trained = policy.language_model.named_parameters()
    gradients = {name: p.grad.clone() for name, p in trained if p.grad is not None}
    return {"chosen": chosen.detach(), "rejected": rejected.detach()} | gradients


def largest_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative error, norm-wise, of log-probs and gradients."""
    assert actual.keys() == expected.keys() and len(actual) > 2
    return max(
        ((actual[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)).item()
        for name in expected
    )
