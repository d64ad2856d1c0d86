"""The plan of a recipe on a cluster: memory, time, a table of alternatives, advice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from cpo_ds.config import Config
from cpo_ds.devices import Device
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.errors import UserError
from cpo_ds.planner.communication import Cluster
from cpo_ds.planner.estimate import PAIR_TOKENS, MemoryPlan, TimePlan, memory_plan, time_plan
from cpo_ds.planner.outlines import Outlines, full_variant, lora_variant
from cpo_ds.planner.states import Weights
from cpo_ds.ranks.place import Place

TABLE_FILES = ("zero0", "zero1", "zero2", "zero3", "zero3-offload")


@dataclass(frozen=True)
class Cell:
    """One combination of the table."""

    zero: str  # a file in ds_configs
    training: str  # full or LoRA
    memory: MemoryPlan


@dataclass(frozen=True)
class Plan:
    """Everything that is printed."""

    config: Config
    model: str
    zero: ZeroSettings
    weights: Weights
    ranks: int
    memory: MemoryPlan
    time: TimePlan | None
    device: Device | None
    table: list[Cell]
    advice: list[str]


def make_plan(
    config: Config,
    *,
    shape: str | None,
    gpus: int,
    nodes: int,
    memory_gib: float,
    device: Device | None,
    pairs: int | None,
) -> Plan:
    """Estimates the recipe and all combinations of the table on `nodes` nodes of `gpus` GPUs."""
    outlines, ranks = Outlines(shape), gpus * nodes
    zero = read_zero(config, gpus, nodes)
    weights = outlines.weights(config)

    def memory_of(config: Config, zero: ZeroSettings, ranks: int = ranks) -> MemoryPlan:
        return memory_plan(
            config,
            outlines.weights(config),
            zero,
            outlines.passes(config, stage=zero.stage),
            ranks=ranks,
            memory_gib=memory_gib,
        )

    memory = memory_of(config, zero)
    time = None
    if device is not None and config.model.dtype != "float32":  # no peak is known for that
        cluster = Cluster(device, gpus, nodes)
        time = time_plan(config, weights, zero, outlines.matrices(config), cluster, pairs)
    table = []
    for training, variant in (("full", full_variant(config)), ("LoRA", lora_variant(config))):
        for name in TABLE_FILES:
            file = config.model_copy(update={"deepspeed": name})
            try:
                settings = read_zero(file, gpus, nodes)
            except UserError:  # no alternative, since training refuses it (float16 at stage 0)
                continue
            table.append(Cell(name, training, memory_of(variant, settings)))
    plan = Plan(
        config, shape or config.model.name_or_path, zero, weights, ranks, memory, time, device,
        table, [],
    )  # fmt: skip
    return replace(plan, advice=_advice(plan, memory_of))


def read_zero(config: Config, gpus: int = 1, nodes: int = 1) -> ZeroSettings:
    """The recipe's DeepSpeed file on `nodes` nodes of `gpus` GPUs, which need not be here.

    Raises `UserError` as training does.
    """
    planned = Place("none", world_size=gpus * nodes, local_world_size=gpus)
    return read_deepspeed_settings(config, planned).zero


def _advice(plan: Plan, memory_of: Callable[..., MemoryPlan]) -> list[str]:
    """What to do with room that is left, or what would fit where there is none."""
    config, memory = plan.config, plan.memory
    least = config.data.max_tokens
    offloads = plan.zero.offload_optimizer or plan.zero.offload_parameters
    lines = []
    if memory.fits:
        if offloads:
            lines.append(_leave_offload(plan))
        lines.append(_larger_micro_batch(plan))
        return [line for line in lines if line]
    if memory.most_tokens >= least:
        lines.append(f"batch.tokens_per_rank {memory.most_tokens} fits")
    if not config.model.gradient_checkpointing:
        model = config.model.model_copy(update={"gradient_checkpointing": True})
        if memory_of(config.model_copy(update={"model": model}), plan.zero).fits:
            lines.append("model.gradient_checkpointing true fits")
    training = "LoRA" if config.trains_adapter else "full"
    fitting = [c for c in plan.table if c.memory.fits]
    same = [c.zero for c in fitting if c.training == training]
    if same:
        lines.append(f"deepspeed {same[0]} fits")
    for ranks in (plan.ranks * 2**power for power in range(1, 7)):
        if memory_of(config, plan.zero, ranks).fits:
            lines.append(f"{ranks} such GPUs fit")
            break
    if training == "full" and not same and any(c.training == "LoRA" for c in fitting):
        lines.append("a LoRA adapter fits (see the table)")
    return lines or ["nothing here fits: take a smaller model or GPUs with more memory"]


def _larger_micro_batch(plan: Plan) -> str:
    """More tokens at once, where there is room and a step has them."""
    batch = plan.config.batch
    whole = math.ceil(batch.pairs / plan.ranks) * PAIR_TOKENS
    tokens = min(plan.memory.most_tokens, whole)
    if tokens < 1.1 * batch.tokens_per_rank:
        return ""
    why = ": a whole step in one micro-batch" if tokens == whole else ""
    return f"there is room for batch.tokens_per_rank {tokens}{why}"


def _leave_offload(plan: Plan) -> str:
    training = "LoRA" if plan.config.trains_adapter else "full"
    for cell in plan.table:
        if cell.zero == "zero3" and cell.training == training and cell.memory.fits:
            return "nothing need be offloaded: deepspeed zero3 fits and is faster"
    return ""
