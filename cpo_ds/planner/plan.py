"""The plan of a recipe on a cluster: memory, time, a table of alternatives, advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cpo_ds.config import Config
from cpo_ds.devices import Device
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.errors import UserError
from cpo_ds.model.recomputation import recomputed_layers
from cpo_ds.planner.choice import settle
from cpo_ds.planner.communication import Cluster
from cpo_ds.planner.estimate import GIB, MemoryPlan, TimePlan, time_plan
from cpo_ds.planner.outlines import Outlines, full_variant, lora_variant
from cpo_ds.planner.recommend import Gpus, Recommendation, recommend, step_tokens, ways_out
from cpo_ds.planner.row_shape import PAIR, RowShape, shape_of_rows
from cpo_ds.planner.states import Weights
from cpo_ds.ranks.place import Place

ROUNDING = "loses small updates in rounding (docs/numerics.md)"
TABLE_FILES = ("zero0", "zero1", "zero2", "zero3", "zero3-offload")


@dataclass(frozen=True)
class Cell:
    """Memory for one row and column of the table."""

    zero: str  # a file in ds_configs
    training: str  # full or LoRA
    memory: MemoryPlan


@dataclass(frozen=True)
class Plan:
    """A plan as `cpo-ds plan` prints it."""

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
    choices: list[str]  # what `auto` stands for, and why
    recomputed: tuple[int, int]  # layers whose activations are recomputed, of how many
    gpus: int  # of each node
    rows: RowShape = PAIR  # those that are trained on
    recommended: Recommendation | None = None  # None if nothing fits
    ways_out: list[str] = field(default_factory=list)  # if nothing fits


def make_plan(
    config: Config,
    *,
    shape: str | None,
    gpus: int,
    nodes: int,
    memory_gib: float,
    device: Device | None,
    pairs: int | None,
    rejected: int | None = None,
    takes_recommended: bool = False,
) -> Plan:
    """Plans a recipe, and the table's alternatives to it, on `nodes` nodes of `gpus` GPUs.

    `shape` names a model to plan for in place of the recipe's. `pairs` is the size of the data set,
    `rejected` the number of rejected translations of its rows, None to look at the data.
    With `takes_recommended` the plan is that of the recommended settings, if any fit, which may
    train all parameters in place of an adapter. Raises `UserError` if the recipe cannot be planned.
    """
    rows = shape_of_rows(config, rejected)
    outlines, ranks = Outlines(shape, rows), gpus * nodes
    on = Gpus(ranks, memory_gib, outlines, lambda named: read_zero(named, gpus, nodes))
    # Settle what the recipe leaves to the planner, as training would on these GPUs.
    config, choices = settle(config, outlines, on.read_zero, ranks=ranks, memory_gib=memory_gib)
    recommended = recommend(config, on, is_open=takes_recommended)
    if takes_recommended and recommended:
        config, choices = recommended.config, []
    zero = on.read_zero(config)
    weights = outlines.weights(config)
    # The recipe, or what is recommended in its place.
    depth = outlines.depth(config)
    recomputed = recomputed_layers(config.model.gradient_checkpointing, depth)
    memory = on.memory_of(config, zero)
    time = None
    if device is not None and device.knows_peak(config.model.dtype):
        cluster = Cluster(device, gpus, nodes)
        matrices = outlines.matrices(config)
        time = time_plan(config, weights, zero, matrices, cluster, pairs, recomputed / depth, rows)
    # The alternatives.
    table = _table(config, on)
    plan = Plan(
        config, shape or config.model.name_or_path, zero, weights, ranks, memory, time, device,
        table, [], choices, (recomputed, depth), gpus, rows, recommended,
        [] if recommended else ways_out(config, on),
    )  # fmt: skip
    return replace(plan, advice=_advice(plan, on.memory_of))


def _table(config: Config, on: Gpus) -> list[Cell]:
    """Each DeepSpeed file, with all parameters trained and with an adapter."""
    table = []
    for training, variant in (("full", full_variant(config)), ("LoRA", lora_variant(config))):
        for name in TABLE_FILES:
            file = variant.model_copy(update={"deepspeed": name})
            try:
                settings = on.read_zero(file)
            except UserError:  # training refuses it too, as float16 at stage 0
                continue
            table.append(Cell(name, training, on.memory_of(variant, settings)))
    return table


def read_zero(config: Config, gpus: int = 1, nodes: int = 1) -> ZeroSettings:
    """Reads the recipe's DeepSpeed file for `nodes` nodes of `gpus` GPUs, without needing them.

    Raises `UserError` for a file that training refuses.
    """
    planned = Place("none", world_size=gpus * nodes, local_world_size=gpus)
    return read_deepspeed_settings(config, planned).zero


def _advice(plan: Plan, memory_of: Callable[..., MemoryPlan]) -> list[str]:
    """Lines of advice: how to use memory that is left, or which changes make the recipe fit."""
    config, memory = plan.config, plan.memory
    least = config.data.max_tokens
    offloads = plan.zero.offload_optimizer or plan.zero.offload_parameters
    lines = []
    # The recipe fits: is there room to do it faster?
    if memory.fits:
        if offloads:
            lines.append(_leave_offload(plan, memory_of))
        lines.append(_larger_micro_batch(plan))
        return [line for line in lines if line]
    # The recipe does not fit: name single changes that help, the cheapest first.
    if memory.most_tokens >= least:
        lines.append(f"batch.tokens_per_rank {memory.most_tokens} fits")
    layers = _fewest_layers(plan, memory_of)
    if layers is not None:
        lines.append(f"model.gradient_checkpointing {layers} fits")
    training = _training(config)
    fitting = [c for c in plan.table if c.memory.fits]
    same = [c.zero for c in fitting if c.training == training]
    if same:
        lines.append(f"deepspeed {same[0]} fits" + _on_host(plan, same[0]))
    for ranks in (plan.ranks * 2**power for power in range(1, 7)):
        if memory_of(config, plan.zero, ranks).fits:
            lines.append(f"{ranks} such GPUs fit")
            break
    if training == "full" and not same and any(c.training == "LoRA" for c in fitting):
        lines.append("a LoRA adapter fits (see the table)")
    name = _file_for_bfloat16_states(plan, memory_of)
    if name:
        where = "" if name == config.deepspeed else f" with deepspeed {name}"
        lines.append(f"optim.states bfloat16 fits{where}, but {ROUNDING}")
    return lines or ["nothing here fits: take a smaller model or GPUs with more memory"]


def _on_host(plan: Plan, name: str) -> str:
    """The host memory that a DeepSpeed file of the table needs, in words; "" if it needs none."""
    training = _training(plan.config)
    hosts = [c.memory.host for c in plan.table if (c.zero, c.training) == (name, training)]
    return f", with {hosts[0] / GIB:.1f} GiB of host memory for each GPU" if hosts[0] else ""


def _fewest_layers(plan: Plan, memory_of: Callable[..., MemoryPlan]) -> int | None:
    """As few layers as make a recipe fit by recomputation; None if even all do not suffice."""
    recomputed, depth = plan.recomputed
    for layers in range(recomputed + 1, depth + 1):
        if memory_of(plan.config.with_model(gradient_checkpointing=layers), plan.zero).fits:
            return layers
    return None


def _larger_micro_batch(plan: Plan) -> str:
    """Advice to raise batch.tokens_per_rank, "" if memory or pairs do not allow it."""
    batch = plan.config.batch
    whole = step_tokens(plan.config, plan.ranks, plan.rows)
    tokens = min(plan.memory.most_tokens, whole)
    if tokens < 1.1 * batch.tokens_per_rank:  # not worth a change
        return ""
    why = ": a whole step in one micro-batch" if tokens == whole else ""
    return f"there is room for batch.tokens_per_rank {tokens}{why}"


def _training(config: Config) -> str:
    """The column of the table that a recipe belongs to."""
    return "LoRA" if config.trains_adapter else "full"


def _file_for_bfloat16_states(plan: Plan, memory_of: Callable[..., MemoryPlan]) -> str:
    """The DeepSpeed file with which all parameters fit if their optimizer states are bfloat16.

    "" if there is none. An adapter's states are small, so that their precision makes no difference.
    """
    config = plan.config
    if config.trains_adapter or config.optim.states == "bfloat16":
        return ""
    optim = config.optim.model_copy(update={"states": "bfloat16"})
    for name in (config.deepspeed, "zero3"):
        changed = config.model_copy(update={"optim": optim, "deepspeed": name})
        try:
            zero = read_zero(changed, plan.ranks)
        except UserError:  # training refuses it, as stage 0
            continue
        if memory_of(changed, zero).fits:
            return name
    return ""


def _leave_offload(plan: Plan, memory_of: Callable[..., MemoryPlan]) -> str:
    """Advice to offload nothing, or "" if memory does not allow it."""
    training = _training(plan.config)
    for cell in plan.table:
        if cell.zero == "zero3" and cell.training == training and cell.memory.fits:
            return "nothing need be offloaded: deepspeed zero3 fits and is faster"
    if _file_for_bfloat16_states(plan, memory_of):
        return (
            "nothing need be offloaded with deepspeed zero3 and optim.states bfloat16, which is "
            f"faster but {ROUNDING}"
        )
    return ""
