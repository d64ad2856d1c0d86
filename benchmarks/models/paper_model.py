"""Counts of kernels, bytes and products -> the time of a micro-batch on a GPU, on paper.

The counts come from `tests/fakecuda/budgets.json`, which a test keeps equal to what the code does.
Kernels run one after the other. A large matrix product takes its arithmetic's time, every other
kernel the time of its bytes, and each a launch. Left out are the optimizer's step, communication,
and a host that is slower than the GPU.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from cpo_ds.devices import Device
from cpo_ds.model.flops import MatrixWeights, matrix_weights, step_flops
from cpo_ds.model.shapes import shape_config

BUDGETS = Path(__file__).resolve().parents[2] / "tests" / "fakecuda" / "budgets.json"

# Assumed shares of the data sheets' peaks.
PRODUCT_SHARE = 0.72
BANDWIDTH_SHARE = 0.85
ATTENTION_SHARE = 0.354  # 350 TFLOP/s of flash-attn 2 on an H100 with 989
LAUNCH_SECONDS = 3e-6
_TILE = 128  # tokens of queries and of keys that a flash kernel computes at once
_BACKWARD_ATTENTION = 3.2  # times the forward pass


@dataclass(frozen=True)
class Sizes:
    """The size of a model and of a micro-batch."""

    layers: int
    heads: int
    head_size: int
    weights: MatrixWeights
    pair: tuple[int, int, int]  # tokens of prefix, chosen and rejected
    pairs: int

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.pairs * sum(self.pair)

    @property
    def scored_tokens(self) -> int:
        """Tokens of the micro-batch that the head scores."""
        return self.pairs * sum(self.pair[1:])


@dataclass(frozen=True)
class Estimate:
    """The time of a micro-batch and its parts, in seconds, and its useful work."""

    products: float
    memory: float
    launches: float
    attention: float
    tokens: int
    flops: float  # that the training needs, without those done twice
    peak: float  # of the device, FLOP/s

    @property
    def seconds(self) -> float:
        """The whole time."""
        return self.products + self.memory + self.launches + self.attention

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second, those of a shared prefix counted once."""
        return self.tokens / self.seconds

    @property
    def share_of_peak(self) -> float:
        """Useful operations a second, as a share of the device's peak."""
        return self.flops / self.seconds / self.peak


def read_budgets(file: Path = BUDGETS) -> dict[str, Any]:
    """The contents of the budgets' file."""
    contents: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return contents


def sizes_of(budget: dict[str, Any], pair: tuple[int, int, int]) -> Sizes:
    """The sizes that a budget was measured for, at the full depth of its shape."""
    config = shape_config(budget["shape"])
    with torch.device("meta"):
        causal_lm = transformers.AutoModelForCausalLM.from_config(config)
    return Sizes(
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
        weights=matrix_weights(causal_lm),
        pair=pair,
        pairs=budget["pairs"],
    )


def whole_work(stages: dict[str, dict[str, int]], layers: int) -> dict[str, int]:
    """Adds up the counts of all stages, those of a layer once for each layer."""
    names = next(iter(stages.values()))
    return {
        name: sum(
            work[name] * (layers if stage.startswith("layer") else 1)
            for stage, work in stages.items()
        )
        for name in names
    }


def estimate(budget: dict[str, Any], sizes: Sizes, device: Device) -> Estimate:
    """The time of a micro-batch with these budgets on a device."""
    peak = device.peak_bf16_tflops * 1e12
    work = whole_work(budget["stages"], sizes.layers)
    return Estimate(
        products=work["product_flops"] / (PRODUCT_SHARE * peak),
        memory=work["bytes"] / (BANDWIDTH_SHARE * device.memory_bandwidth * 1e9),
        launches=work["kernels"] * LAUNCH_SECONDS,
        attention=_attention_flops(sizes, budget["recomputes"]) / (ATTENTION_SHARE * peak),
        tokens=sizes.tokens,
        flops=step_flops(
            sizes.weights,
            sizes.tokens,
            sizes.scored_tokens,
            trains_adapter=budget["training"] == "lora",
        ),
        peak=peak,
    )


def _attention_flops(sizes: Sizes, recomputes: bool) -> float:
    """Operations of a flash kernel, in forward passes: it computes whole tiles of each branch.

    Two products, of queries with keys and of weights with values, cost 4 operations for each
    query, key and value of a head.
    """
    prefix, chosen, rejected = sizes.pair
    tiles = _tiles(prefix + chosen) ** 2 + _tiles(rejected) * _tiles(prefix + rejected)
    forward = sizes.pairs * sizes.heads * tiles * _TILE**2 * 4 * sizes.head_size
    return sizes.layers * forward * (1 + recomputes + _BACKWARD_ATTENTION)


def _tiles(tokens: int) -> int:
    return -(-tokens // _TILE)
