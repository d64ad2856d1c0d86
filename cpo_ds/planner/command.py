"""`cpo-ds plan`: reads the recipe and the cluster, prints the plan."""

from __future__ import annotations

import argparse
import json
import math
import os
from typing import TYPE_CHECKING

from cpo_ds.devices import DEVICES, Device, device_by_name
from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.model.shapes import SHAPES, check_shape
from cpo_ds.planner.light_imports import import_lightly, start_again_with_all
from cpo_ds.ranks.quiet import silence_after_import, silence_libraries

if TYPE_CHECKING:
    from cpo_ds.config import Config
    from cpo_ds.planner.plan import Plan

# Without a recipe: its values do for any model, and layers are recomputed as on a full GPU.
_DEFAULT_RECIPE = ("--config", "own-pairs", "--model.gradient_checkpointing", "true")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds plan`."""
    parser.description = (
        f"{parser.description} Recipe options as in training: --config, --section.field value. "
        "Without --config it recommends settings for the model of --shape, from the values of "
        "recipes/own-pairs.yaml. Exit code 2 if nothing fits."
    )
    add = parser.add_argument
    add("--shape", metavar="NAME", help=f"a model in place of the recipe's: {', '.join(SHAPES)}")
    add("--gpus", type=int, default=8, help="GPUs of each node (8)")
    add("--nodes", type=int, default=1, help="nodes (1)")
    add("--device", metavar="NAME", help=f"a known GPU: {', '.join(DEVICES)}")
    add("--gpu-memory", metavar="GIB", type=float, help="memory of each GPU, if it is not named")
    add("--pairs", type=int, help="pairs in the data set, for the run's time")
    add(
        "--rejected",
        type=int,
        metavar="K",
        help="rejected translations of each row (the mean of the recipe's data, if it is here)",
    )
    add("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan; returns 0, or 2 if nothing fits.

    Raises `UserError` for a wrong option, and if the recipe cannot be planned.
    """
    # All that was given is checked before torch, transformers and DeepSpeed take seconds.
    device, memory_gib = _memory(arguments.device, arguments.gpu_memory)
    _check_positive(arguments)
    if arguments.shape is not None:
        check_shape(arguments.shape)
    has_recipe = _is_given("--config", arguments.recipe)
    config = _config(arguments, has_recipe)
    if config.model.dtype == "auto":  # training asks the GPUs themselves
        has_bfloat16 = device is None or device.has_bfloat16
        config = config.with_model(dtype="bfloat16" if has_bfloat16 else "float32")
    # The plan uses no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    silence_libraries()
    # Attention in float32 is measured on tensors that torch's compiler keeps account of.
    is_light = arguments.owns_process and config.model.dtype != "float32" and import_lightly()
    try:
        plan, text = _planned(arguments, config, memory_gib, device, has_recipe)
    except UserError:
        raise
    except Exception:
        if is_light:  # versions of the libraries may need what was left out
            start_again_with_all()
        raise
    print(text)
    return 0 if plan.recommended else EXIT_USER_ERROR


def _planned(
    arguments: argparse.Namespace,
    config: Config,
    memory_gib: float,
    device: Device | None,
    has_recipe: bool,
) -> tuple[Plan, str]:
    """The plan and its text. Raises `UserError` if the recipe cannot be planned."""
    from cpo_ds.planner.plan import make_plan
    from cpo_ds.planner.text import as_text, as_values

    silence_after_import()
    plan = make_plan(
        config,
        shape=arguments.shape,
        gpus=arguments.gpus,
        nodes=arguments.nodes,
        memory_gib=memory_gib,
        device=device,
        pairs=arguments.pairs,
        rejected=arguments.rejected,
        takes_recommended=not has_recipe,
    )
    return plan, json.dumps(as_values(plan), indent=1) if arguments.json else as_text(plan)


def _config(arguments: argparse.Namespace, has_recipe: bool) -> Config:
    """The recipe to plan, with the options of the command line."""
    from cpo_ds.recipe import load_config  # pydantic takes a moment, which --help need not wait for

    if has_recipe:
        return load_config(arguments.recipe)[0]
    if arguments.shape is None and not _is_given("--model.name_or_path", arguments.recipe):
        raise UserError(
            "no model is given. Name a shape (--shape llama-3.1-8b; --help lists all), a model "
            "(--model.name_or_path, a folder or a Hugging Face name) or a recipe (--config FILE)."
        )
    return load_config([*_DEFAULT_RECIPE, *arguments.recipe])[0]


def _is_given(option: str, words: list[str]) -> bool:
    """Whether an option is on the command line, as `--option value` or `--option=value`."""
    return any(
        word.partition("=")[0].replace("-", "_") == option.replace("-", "_") for word in words
    )


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
    for name in ("gpus", "nodes", "gpu_memory", "pairs", "rejected"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be above 0.")
