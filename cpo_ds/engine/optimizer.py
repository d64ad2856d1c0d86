"""The optimizer of a run: AdamW, without weight decay on norms and biases."""

from __future__ import annotations

import torch
from torch import nn

from cpo_ds.config import OptimConfig


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Returns torch's fused AdamW over the trained parameters of `model`."""
    decayed: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (other if _is_norm_or_bias(name) else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": other, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=optim.learning_rate,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )


def _is_norm_or_bias(name: str) -> bool:
    """Whether a parameter is a norm's or a bias; transformers' Trainer decays neither."""
    return name.endswith("bias") or "norm" in name.lower()
