"""Writes weights as safetensors files of limited size, one of them in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Named = tuple[str, torch.Tensor]

SHARD_BYTES = 5 * 10**9  # of a safetensors file, as transformers splits models


def plan_shards(sizes: dict[str, int], shard_bytes: int) -> list[dict[str, int]]:
    """Cuts named sizes, in order, into shards of at most `shard_bytes`, or of one larger tensor."""
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    return shards


def write_shards(folder: Path, weights: Iterator[Named], shards: list[dict[str, int]]) -> None:
    """Writes safetensors files, one shard in memory at a time, and an index if there are several.

    `shards` are the sizes in bytes of the weights, by name and in their order.
    """
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in shard:
            next_name, tensor = next(weights)
            assert next_name == name, f"weights are out of order: {next_name} instead of {name}"
            tensors[name] = tensor.contiguous()
        save_tensors(tensors, folder / file)
        file_of |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(size for shard in shards for size in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        text = json.dumps(index, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes a safetensors file that others may read as any new file. Raises `OSError`.

    safetensors gives its files to their owner alone, whatever the umask says, so that a server of
    another user could not load an export.
    """
    save_file(dict(tensors), path, metadata={"format": "pt"})
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
