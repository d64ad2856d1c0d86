"""Settles what a recipe leaves to the planner: `deepspeed` and `model.gradient_checkpointing`.

A DeepSpeed file whose plan fits is taken in this order, since each sends more than the one before:

1. `zero0` or `zero2`: the one that recomputes fewer layers, `zero0` if both recompute as many
2. `zero3`
3. `zero3-offload`

For an adapter in half precision on GPUs `zero1` comes before `zero0`: at stage 0 DeepSpeed casts
each trained tensor by itself and makes the host wait for its norm. There are hundreds of them.

Of the layers as few as fit are recomputed. So recomputation comes before splitting the weights, and
all else before offloading. A plan fits if it leaves `RESERVE` of the GPU free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cpo_ds.config import Config
from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.errors import UserError
from cpo_ds.planner.estimate import GIB, MemoryPlan, memory_plan
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.states import ELEMENT_BYTES
from cpo_ds.recipe import DEEPSPEED_CHOICES

_ORDER = (("zero0", "zero2"), ("zero3",), ("zero3-offload",))
_STAGES = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3, "zero3-offload": 3}
_BEFORE_ZERO0 = "zero1"  # for an adapter in half precision
assert {_BEFORE_ZERO0, *(name for group in _ORDER for name in group)} == {*DEEPSPEED_CHOICES}

# Part of a GPU that a choice leaves free: the largest error of the estimate in any measurement.
RESERVE = 0.08

ReadZero = Callable[[Config], ZeroSettings]  # reads a recipe's DeepSpeed file


@dataclass(frozen=True)
class _Candidate:
    """A recipe without `auto`, and its plan."""

    config: Config
    memory: MemoryPlan

    @property
    def layers(self) -> int:
        """Layers that it recomputes, if that is left to the planner."""
        return int(self.config.model.gradient_checkpointing)

    @property
    def gib(self) -> str:
        """Its memory for a message."""
        return f"{self.memory.total / GIB:.1f}"


def leaves_choice(config: Config) -> bool:
    """Whether a recipe leaves anything to the planner."""
    return "auto" in (config.deepspeed, config.model.gradient_checkpointing)


def files_in_order(config: Config) -> list[str]:
    """The DeepSpeed files that `auto` takes for a recipe on GPUs, in the order of choice."""
    chosen = config.model_copy(update={"deepspeed": "auto"})
    return [name for group in _groups(chosen, None, on_gpu=True) for name in group]


def settle(
    config: Config,
    outlines: Outlines,
    read_zero: ReadZero,
    *,
    ranks: int,
    memory_gib: float | None,
    stage: int | None = None,
) -> tuple[Config, list[str]]:
    """Returns the recipe without `auto`, and lines that say what was taken and why.

    `memory_gib` is the memory of the smallest GPU, None on CPUs, whose memory is not planned.
    `stage` is the ZeRO stage of a checkpoint to resume from, which has to be kept.
    """
    if not leaves_choice(config):
        return config, []
    groups = _groups(config, stage, on_gpu=memory_gib is not None)
    if memory_gib is None:
        return _without_plan(config, groups, read_zero)
    depth = outlines.depth(config)
    rejected: list[_Candidate] = []  # the best of each file that does not fit
    refusal: UserError | None = None
    # Try the groups in turn; in each, take the file that recomputes the fewest layers.
    for group in groups:
        fitting: list[_Candidate] = []
        for name in group:
            named = config.model_copy(update={"deepspeed": name})
            try:
                zero = read_zero(named)
            except UserError as error:  # training refuses it, as float16 at stage 0
                refusal = error
                continue
            usable = memory_gib * (1 - RESERVE)
            best = _fewest_layers(named, outlines, zero, ranks, usable, depth)
            (fitting if best.memory.fits else rejected).append(best)
        if fitting:
            taken = min(fitting, key=lambda candidate: candidate.layers)  # the first of equals
            return taken.config, _lines(config, taken, rejected, depth, stage)
    if not rejected:
        assert refusal is not None
        raise refusal
    # Nothing fits. The estimate may be too high, so the run is started all the same.
    taken = min(rejected, key=lambda candidate: candidate.memory.total)
    others = [candidate for candidate in rejected if candidate is not taken]
    return taken.config, _lines(config, taken, others, depth, stage)


def _groups(config: Config, stage: int | None, *, on_gpu: bool) -> list[tuple[str, ...]]:
    """Names of DeepSpeed files to choose from, by group in the order of choice."""
    if config.deepspeed != "auto":
        return [(config.deepspeed,)]
    order: tuple[tuple[str, ...], ...] = _ORDER
    waits_at_0 = on_gpu and config.trains_adapter and ELEMENT_BYTES[config.model.dtype] == 2
    if waits_at_0 or stage == 1:
        order = ((_BEFORE_ZERO0, *_ORDER[0]), *_ORDER[1:])
    kept = (tuple(n for n in group if stage in (None, _STAGES[n])) for group in order)
    return [group for group in kept if group]


def _without_plan(
    config: Config, groups: list[tuple[str, ...]], read_zero: ReadZero
) -> tuple[Config, list[str]]:
    """The choice on CPUs: recompute nothing, and split no more than training asks for."""
    names = [name for group in groups for name in group]
    deepspeed = next((name for name in names if _is_taken(config, name, read_zero)), names[0])
    reason = "since the memory of CPUs is not planned"
    lines = []
    if config.deepspeed == "auto":
        lines.append(f"deepspeed: auto takes {deepspeed}, {reason}")
    if config.model.gradient_checkpointing == "auto":
        lines.append(f"model.gradient_checkpointing: auto recomputes no layer, {reason}")
        config = config.with_model(gradient_checkpointing=0)
    return config.model_copy(update={"deepspeed": deepspeed}), lines


def _is_taken(config: Config, deepspeed: str, read_zero: ReadZero) -> bool:
    """Whether training takes this DeepSpeed file with the recipe."""
    try:
        read_zero(config.model_copy(update={"deepspeed": deepspeed}))
    except UserError:
        return False
    return True


def _fewest_layers(
    config: Config,
    outlines: Outlines,
    zero: ZeroSettings,
    ranks: int,
    memory_gib: float,
    depth: int,
) -> _Candidate:
    """The recipe with as few recomputed layers as fit, with all of them if none does."""
    is_open = config.model.gradient_checkpointing == "auto"
    for layers in range(depth + 1) if is_open else (None,):
        settled = config if layers is None else config.with_model(gradient_checkpointing=layers)
        memory = memory_plan(
            settled,
            outlines.weights(settled),
            zero,
            outlines.passes(settled, stage=zero.stage),
            ranks=ranks,
            memory_gib=memory_gib,
        )
        if memory.fits:
            break
    return _Candidate(settled, memory)


def _lines(
    config: Config, taken: _Candidate, rejected: list[_Candidate], depth: int, stage: int | None
) -> list[str]:
    """Lines that say what was taken for each `auto`, and why."""
    whole = taken.memory.available / (1 - RESERVE) / GIB
    plan = f"planned are {taken.gib} of {whole:.1f} GiB for each GPU"
    if not taken.memory.fits:
        plan += (
            f", which leaves less than {RESERVE:.0%} for errors of the plan: if memory runs out, "
            "lower batch.tokens_per_rank"
        )
    lines = []
    if config.deepspeed == "auto":
        reasons = [plan]
        reasons += [f"{other.config.deepspeed} would take {other.gib}" for other in rejected]
        if stage is not None:
            reasons.append(f"the checkpoint to resume from is of stage {stage}")
        lines.append(f"deepspeed: auto takes {taken.config.deepspeed} ({'; '.join(reasons)})")
    if config.model.gradient_checkpointing == "auto":
        lines.append(
            f"model.gradient_checkpointing: auto recomputes {taken.layers} of {depth} layers "
            f"({plan})"
        )
    return lines
