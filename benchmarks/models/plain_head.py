"""The plain head, computed by autograd: chunked heads are compared with it."""

from __future__ import annotations

import torch

from cpo_ds.model.logprobs import HeadTransform


def plain_logps(
    hidden_SE: torch.Tensor,
    weight_VE: torch.Tensor,
    targets_S: torch.Tensor,
    transform: HeadTransform,
) -> torch.Tensor:
    """Log-prob of each target, [S], from all logits at once; arguments as of `token_logps`."""
    logits_SV = hidden_SE @ weight_VE.t()
    logits_SV = logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32))
    if transform.scale != 1.0:
        logits_SV = logits_SV * transform.scale
    if transform.softcap is not None:
        logits_SV = torch.tanh(logits_SV / transform.softcap) * transform.softcap
    return logits_SV.log_softmax(-1).gather(-1, targets_S[:, None])[:, 0]
