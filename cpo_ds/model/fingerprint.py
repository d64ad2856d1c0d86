"""A fingerprint of a model's weights, the same for any way to split them over ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn

from cpo_ds.ranks.liveness import count_work

_WIDTH = 2**10  # numbers in a row of the matrix that a tensor is read as
_BLOCK = 2**24  # numbers whose sums of rows are kept at a time
# Rows read at once. On a CPU they fit its cache, and they are too few for torch to share them out
# between threads: those would wait for each other many times, for long on cores that are busy.
_ROWS, _GPU_ROWS = 31, 2**12
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
    for offset in range(0, len(bits), _BLOCK):
        sums += _block_sums(bits[offset : offset + _BLOCK], start + offset)
    return sums


def _block_sums(bits: torch.Tensor, start: int) -> torch.Tensor:
    """The checksum of integers, from sums of the rows and columns of a matrix that they fill.

    A number's position is that of its row plus its place in the row, so no number needs a product
    of its own.
    """
    matrix, rest = bits.split([len(bits) // _WIDTH * _WIDTH, len(bits) % _WIDTH])
    matrix = matrix.view(-1, _WIDTH)
    row_sums = bits.new_zeros(len(matrix) + 1, dtype=torch.int64)
    column_sums = bits.new_zeros(_WIDTH, dtype=torch.int64)

    # Add up some rows at a time, and the incomplete last row.
    step = _ROWS if bits.device.type == "cpu" else _GPU_ROWS
    for first in range(0, len(matrix), step):
        count_work()
        rows = matrix[first : first + step].to(torch.int64)
        row_sums[first : first + len(rows)] = rows.sum(1)
        column_sums += rows.sum(0)
    count_work()
    row_sums[-1] = rest.sum(dtype=torch.int64)
    column_sums[: len(rest)] += rest

    # Multiply by the positions: the number before each row, and those within a row.
    places = torch.arange(1, _WIDTH + 1, device=bits.device)
    before = start + _WIDTH * torch.arange(len(row_sums), device=bits.device)
    weighted = (row_sums * before).sum() + (column_sums * places).sum()
    return torch.stack([row_sums.sum(), weighted])
