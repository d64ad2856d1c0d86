"""Settles `auto` in a recipe by the planner, for the devices of a run, the same on all ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from cpo_ds.checkpoint.resume import stage_to_resume
from cpo_ds.config import Config
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.planner.choice import leaves_choice, settle
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.row_shape import shape_of_rows
from cpo_ds.ranks.place import Place
from cpo_ds.ranks.ranks import Ranks


def with_plan(config: Config, ranks: Ranks) -> tuple[Config, list[str]]:
    """Returns the recipe without `auto`, and lines for the log that say what was taken and why."""
    if not leaves_choice(config):
        return config, []
    sizes = ranks.gather(memory_of(ranks.device))
    known = [size for size in sizes if size is not None]
    least = min(known) if known else None
    return ranks.on_first(lambda: settled(config, ranks.world_size, least))


def settled(
    config: Config, ranks: int, memory_gib: float | None, planned: Place | None = None
) -> tuple[Config, list[str]]:
    """The same for a number of ranks with so much memory each.

    `planned` is the place of one of them if they do not run yet.
    """
    stage = None
    if config.deepspeed == "auto":
        stage = stage_to_resume(config.checkpoint, Path(config.output_dir) / "checkpoints")
    return settle(
        config,
        Outlines(None, shape_of_rows(config), suggests_shape=False),
        lambda named: read_deepspeed_settings(named, planned).zero,
        ranks=ranks,
        memory_gib=memory_gib,
        stage=stage,
    )


def memory_of(device: torch.device) -> float | None:
    """Memory of a GPU in GiB; None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory / 2**30
