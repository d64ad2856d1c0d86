"""Budgets of kernels and bytes of a decoder layer and of the head: measured, compared, written.

    python tests/fakecuda/budgets.py --print     # as JSON
    python tests/fakecuda/budgets.py --update    # into budgets.json

Layers are alike, so one costs the difference between models of three layers and of two.
"""

from __future__ import annotations

import guard

guard.load(guard.build())

# ruff: noqa: E402
import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import fake_policy
from audit import Audit, Work

from cpo_ds.model.shapes import shape_config
from cpo_ds.planner.activations import TYPICAL_PAIR, pair_of_lengths
from cpo_ds.recipe import parse_config

FILE = Path(__file__).with_name("budgets.json")
SHAPES = {"llama-2-7b": 16384, "llama-2-13b": 8192}  # most tokens of the micro-batch
STAGES = ("layer forward", "layer backward", "head forward", "head backward", "rest")


def measure() -> dict[str, Any]:
    """All budgets, in the form of the file."""
    budgets = {}
    for shape, most_tokens in SHAPES.items():
        for training in ("lora", "full"):
            for recomputes in (False, True):
                pairs = most_tokens // sum(TYPICAL_PAIR)
                stages = _stages(shape, training, recomputes, pairs)
                name = f"{shape}, {training}{', recomputing' if recomputes else ''}"
                budgets[name] = {
                    "shape": shape,
                    "training": training,
                    "recomputes": recomputes,
                    "pairs": pairs,
                    "stages": {stage: vars(work) for stage, work in stages.items()},
                }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"pair": list(TYPICAL_PAIR), "versions": versions, "budgets": budgets}


def _stages(shape: str, training: str, recomputes: bool, pairs: int) -> dict[str, Work]:
    two, three = (audit_of(shape, training, recomputes, pairs, layers) for layers in (2, 3))
    layer = {
        f"layer {direction}": three.work[f"body {direction}"] - two.work[f"body {direction}"]
        for direction in ("forward", "backward")
    }
    head = {stage: two.work[stage] for stage in ("head forward", "head backward")}
    rest = two.total
    for work, times in [*((w, -2) for w in layer.values()), *((w, -1) for w in head.values())]:
        rest = rest.plus(work, times)
    return layer | head | {"rest": rest}


def audit_of(shape: str, training: str, recomputes: bool, pairs: int, layers: int) -> Audit:
    """The audit of a pass through a model of so many layers."""
    values: dict[str, Any] = {
        "model": {
            "name_or_path": shape,
            "dtype": "bfloat16",
            "attention": "torch_varlen",
            "gradient_checkpointing": recomputes,
        },
        "data": {"format": "sample"},
    }
    if training == "lora":
        values["lora"] = {"rank": 16, "dropout": 0.05, "target_modules": ["down_proj"]}
    config = parse_config(values, "budgets")
    model_config = shape_config(shape)
    model_config.num_hidden_layers = layers
    with fake_policy.fake_cuda():
        policy = fake_policy.load_shape(config, model_config)
        return fake_policy.run_pass(policy, [pair_of_lengths(*TYPICAL_PAIR)] * pairs, config).audit


def main() -> None:
    """Prints or writes the budgets, or shows the kernels that make one up."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--print", action="store_true", help="print the budgets as JSON")
    mode.add_argument("--update", action="store_true", help=f"write them to {FILE.name}")
    mode.add_argument(
        "--kernels", metavar="CASE", help='list a case\'s kernels: "llama-2-7b, lora, recomputing"'
    )
    arguments = parser.parse_args()
    if arguments.kernels:
        print(_kernels(arguments.kernels))
        return
    text = json.dumps(measure(), indent=1) + "\n"
    if arguments.print:
        print(text, end="")
    else:
        FILE.write_text(text, encoding="utf-8")


def _kernels(case: str) -> str:
    """Kernels of a model of two layers: stage, operation, largest tensor, launches, gigabytes."""
    shape, training, *recomputing = case.split(", ")
    pairs = SHAPES[shape] // sum(TYPICAL_PAIR)
    kinds = audit_of(shape, training, bool(recomputing), pairs, 2).kinds
    return "\n".join(
        f"{kind.stage:14} {kind.name:28} {kind.largest:34} {work.kernels:5}"
        f"{(work.bytes + work.product_bytes) / 1e9:9.3f} GB {work.product_flops / 1e12:8.3f} TFLOP"
        for kind, work in kinds.items()
    )


if __name__ == "__main__":
    main()
