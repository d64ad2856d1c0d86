"""The settings that a plan recommends for given GPUs, and ways out if nothing fits.

All parameters are recommended if they fit without offloading, else an adapter. Among DeepSpeed
files the order is that of `deepspeed: auto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cpo_ds.config import Config
from cpo_ds.devices import DEVICES
from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.errors import UserError
from cpo_ds.planner.choice import RESERVE, ReadZero, files_in_order
from cpo_ds.planner.estimate import GIB, MemoryPlan, memory_plan
from cpo_ds.planner.outlines import Outlines, full_variant, lora_variant
from cpo_ds.planner.row_shape import RowShape

_ROUND = 256  # tokens; a recommended batch.tokens_per_rank is a multiple, if memory limits it
OFFLOADED = "zero3-offload"


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a plan is made for, and the model that they train."""

    ranks: int
    memory_gib: float  # of each
    outlines: Outlines
    read_zero: ReadZero

    @property
    def usable_gib(self) -> float:
        """The memory without the part that is left free for errors of the estimate."""
        return self.memory_gib * (1 - RESERVE)

    def memory_of(
        self,
        config: Config,
        zero: ZeroSettings,
        ranks: int | None = None,
        memory_gib: float | None = None,
    ) -> MemoryPlan:
        """The memory of a recipe, on another number or size of GPUs if they are given."""
        return memory_plan(
            config,
            self.outlines.weights(config),
            zero,
            self.outlines.passes(config, stage=zero.stage),
            ranks=ranks or self.ranks,
            memory_gib=memory_gib or self.memory_gib,
        )


@dataclass(frozen=True)
class Recommendation:
    """Settings that fit, and their memory."""

    config: Config
    memory: MemoryPlan
    replaces_full: bool = False  # an adapter, since all parameters do not fit
    offloaded: MemoryPlan | None = None  # all parameters offloaded, if they fit so

    @property
    def options(self) -> str:
        """The settings as options of the command line."""
        words = [f"--deepspeed {self.config.deepspeed}"]
        words.append(f"--batch.tokens_per_rank {self.config.batch.tokens_per_rank}")
        if not self.config.trains_adapter:
            words.append("--lora none")
        elif self.config.lora is not None:
            words.append(f"--lora.rank {self.config.lora.rank}")
        return " ".join(words)


def recommend(config: Config, gpus: Gpus, *, is_open: bool) -> Recommendation | None:
    """The settings to take for a recipe on these GPUs; None if nothing fits.

    `is_open` is whether an adapter's recipe may train all parameters instead.
    """
    for variant in _variants(config, is_open):
        taken = _fitted(variant, gpus)
        if taken is None:
            continue
        memory = gpus.memory_of(taken, gpus.read_zero(taken))
        if not taken.trains_adapter or (config.trains_adapter and not is_open):
            return Recommendation(taken, memory)
        return Recommendation(taken, memory, True, _offloaded(full_variant(config), gpus))
    return None


def step_tokens(config: Config, ranks: int, rows: RowShape) -> int:
    """The tokens of a rank's share of a step."""
    return math.ceil(math.ceil(config.batch.pairs / ranks) * rows.tokens)


def _variants(config: Config, is_open: bool) -> Iterator[Config]:
    """A recipe by what it trains and by DeepSpeed file, the best first."""
    lora = lora_variant(config)
    kinds = [full_variant(config), lora] if is_open or not config.trains_adapter else [lora]
    for kind in kinds:
        for name in files_in_order(kind):
            if name != OFFLOADED:
                yield kind.model_copy(update={"deepspeed": name})
    yield lora.model_copy(update={"deepspeed": OFFLOADED})


def _fitted(config: Config, gpus: Gpus) -> Config | None:
    """The recipe with as many tokens as make sense in a micro-batch; None if it does not fit."""
    try:
        zero = gpus.read_zero(config)
    except UserError:  # training refuses it, as float16 at stage 0
        return None
    most = gpus.memory_of(config, zero, memory_gib=gpus.usable_gib).most_tokens
    if most < gpus.outlines.rows.tokens:
        return None
    # More than a whole step is never computed at once.
    tokens = max(step_tokens(config, gpus.ranks, gpus.outlines.rows), config.batch.tokens_per_rank)
    if tokens > most:
        tokens = max(most // _ROUND * _ROUND, config.data.max_tokens)
    batch = config.batch.model_copy(update={"tokens_per_rank": tokens})
    return config.model_copy(update={"batch": batch})


def _offloaded(config: Config, gpus: Gpus) -> MemoryPlan | None:
    """The memory of all parameters with weights and optimizer on the host, if that fits."""
    fitted = _fitted(config.model_copy(update={"deepspeed": OFFLOADED}), gpus)
    return None if fitted is None else gpus.memory_of(fitted, gpus.read_zero(fitted))


def ways_out(config: Config, gpus: Gpus) -> list[str]:
    """Changes that help if not even an offloaded adapter fits, in words."""
    lora = lora_variant(config)
    lines = []
    in_4_bits = lora.with_model(quantization="nf4").model_copy(update={"deepspeed": "zero2"})
    if lora.model.dtype == "bfloat16" and _fitted(in_4_bits, gpus):
        lines.append("a LoRA adapter on a base in 4 bits: --model.quantization nf4")
    # Larger GPUs, for micro-batches of a single pair. More of them would not help: each would still
    # need what is not offloaded.
    batch = lora.batch.model_copy(update={"tokens_per_rank": lora.data.max_tokens})
    least = lora.model_copy(update={"batch": batch, "deepspeed": OFFLOADED})
    needed = gpus.memory_of(least, gpus.read_zero(least)).total / GIB / (1 - RESERVE)
    larger = [device for device in DEVICES.values() if device.memory_gib >= needed]
    example = min(larger, key=lambda device: device.memory_gib, default=None)
    has = f" ({example.name} has {example.memory_gib:.1f})" if example else ""
    lines.append(
        f"a LoRA adapter on GPUs of {needed:.1f} GiB{has}, with deepspeed {OFFLOADED} and "
        f"batch.tokens_per_rank {lora.data.max_tokens}"
    )
    return [*lines, "a smaller model, or shorter pairs (data.max_tokens)"]
