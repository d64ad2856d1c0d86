"""Reads exported folders and compares them bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Tensors = dict[str, torch.Tensor]


def run_of(values: dict[str, Any]) -> Path:
    return Path(values["output_dir"])


def tensors_of(folder: Path) -> Tensors:
    named: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        named |= load_file(file)
    return named


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
