"""A fingerprint of a model's weights, the same for any way to split them over ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn

from cpo_ds.ranks.liveness import count_work

_CHUNK = 2**18  # numbers read at once; they fit a processor's cache
_AS_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def weights_fingerprint(model: nn.Module, sum_over_ranks: Callable[[torch.Tensor], object]) -> str:
    """16 hexadecimal digits that change with any bit of any parameter.

    Under ZeRO-3 each rank reads its own shard of every parameter, and `sum_over_ranks` adds up an
    int64 tensor in place. Otherwise each rank reads all parameters and does not call it.
    """
    named = list(model.named_parameters())
    sums = torch.stack([_checksum(parameter).cpu() for _, parameter in named])
    if any(hasattr(parameter, "ds_tensor") for _, parameter in named):
        sum_over_ranks(sums)
    digest = hashlib.sha256(" ".join(name for name, _ in named).encode())
    digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _checksum(parameter: nn.Parameter) -> torch.Tensor:
    """[2] int64: the checksum of a parameter, or of this rank's shard of it under ZeRO-3."""
    shard = getattr(parameter, "ds_tensor", None)
    if shard is None:
        return checksum(parameter.data.flatten(), 0)
    # Shards are equally long, so the last one may end in padding, which does not count.
    start = torch.distributed.get_rank() * shard.numel()
    held = max(0, min(shard.numel(), parameter.ds_numel - start))  # type: ignore[attr-defined]
    return checksum(shard.data.flatten()[:held], start)


def checksum(values: torch.Tensor, start: int) -> torch.Tensor:
    """[2] int64: sums modulo 2**64 over a flat tensor's numbers, read as integers.

    The first is a plain sum. In the second each number is multiplied by its position in the whole
    tensor, counted from 1. `start` numbers come before this part, so the checksums of all parts add
    up to that of the whole.
    """
    sums = torch.zeros(2, dtype=torch.int64, device=values.device)
    bits = values.view(_AS_INTEGERS[values.element_size()])
    positions = torch.arange(1, min(_CHUNK, len(bits)) + 1, device=values.device)
    for offset in range(0, len(bits), _CHUNK):
        count_work()
        chunk = bits[offset : offset + _CHUNK].to(torch.int64)
        plain = chunk.sum()
        sums[0] += plain
        sums[1] += (chunk * positions[: len(chunk)]).sum() + plain * (start + offset)
    return sums
