"""`cpo-ds plan`: reads the recipe and the cluster, prints the plan."""

from __future__ import annotations

import argparse
import json
import math
import os

from cpo_ds.devices import Device, device_by_name
from cpo_ds.errors import UserError
from cpo_ds.ranks.quiet import silence_after_import, silence_libraries


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds plan`."""
    parser.description = (
        f"{parser.description} Recipe options as in training: --config, --section.field value."
    )
    add = parser.add_argument
    add("--shape", metavar="NAME", help="a model shape in place of the recipe's")
    add("--gpus", type=int, default=8, help="GPUs of each node (8)")
    add("--nodes", type=int, default=1, help="nodes (1)")
    add("--device", metavar="NAME", help="a known GPU: A100-80GB, H100, ...")
    add("--gpu-memory", metavar="GIB", type=float, help="memory of each GPU")
    add("--pairs", type=int, help="pairs in the data set, for the run's time")
    add("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan; returns 0. Raises `UserError` if the recipe cannot be planned."""
    # Imported late: torch, transformers and DeepSpeed take seconds. The plan uses no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    silence_libraries()
    from cpo_ds.planner.plan import make_plan
    from cpo_ds.planner.text import as_text, as_values
    from cpo_ds.recipe import load_config

    silence_after_import()
    config, _ = load_config(arguments.recipe)
    device, memory_gib = _memory(arguments.device, arguments.gpu_memory)
    if config.model.dtype == "auto":  # training asks the GPUs themselves
        has_bfloat16 = device is None or device.has_bfloat16
        config = config.with_model(dtype="bfloat16" if has_bfloat16 else "float32")
    _check_positive(arguments)
    plan = make_plan(
        config,
        shape=arguments.shape,
        gpus=arguments.gpus,
        nodes=arguments.nodes,
        memory_gib=memory_gib,
        device=device,
        pairs=arguments.pairs,
    )
    print(json.dumps(as_values(plan), indent=1) if arguments.json else as_text(plan))
    return 0


def _memory(name: str | None, memory_gib: float | None) -> tuple[Device | None, float]:
    """The device by name, if one is given, and the GiB of a GPU: the given ones, else its own."""
    if name is None and memory_gib is None:
        raise UserError("the memory of a GPU is not known. Give --device NAME or --gpu-memory GIB.")
    device = None if name is None else device_by_name(name)
    if memory_gib is None:
        assert device is not None
        memory_gib = device.memory_gib
    return device, memory_gib


def _check_positive(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for a number that is not above 0."""
    for name in ("gpus", "nodes", "gpu_memory", "pairs"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be above 0.")
