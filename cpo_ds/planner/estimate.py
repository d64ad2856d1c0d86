"""Memory, room and time of one recipe on one cluster: the numbers that `cpo-ds plan` prints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cpo_ds.config import Config
from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.model.flops import MatrixWeights, recomputed_flops, step_flops
from cpo_ds.planner.communication import Cluster, zero_volume
from cpo_ds.planner.passes import PassModel
from cpo_ds.planner.row_shape import PAIR, RowShape
from cpo_ds.planner.states import ELEMENT_BYTES, StateMemory, Weights, state_memory
from cpo_ds.planner.step_time import (
    HOST_BANDWIDTH,
    UPDATE_BYTES,
    StepTime,
    communication_seconds,
    compute_seconds,
    micro_batches_per_step,
)

GIB = 2**30
RUNTIME_GIB = 1.5  # CUDA context, kernels and workspaces, NCCL's buffers
FRAGMENTATION = 0.05  # of what tensors need, lost between them in torch's allocator


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU by part, and the room that is left."""

    parts: dict[str, float]
    update: float  # of the whole GPU during the update
    host: float  # of the host, per GPU
    available: float
    most_tokens: int  # the largest batch.tokens_per_rank that fits; 0 if none does

    @property
    def total(self) -> float:
        """Bytes of the GPU when it holds most."""
        return max(sum(self.parts.values()), self.update)

    @property
    def fits(self) -> bool:
        """Whether the recipe fits without changes."""
        return self.total <= self.available


def memory_plan(
    config: Config,
    weights: Weights,
    zero: ZeroSettings,
    passes: PassModel,
    *,
    ranks: int,
    memory_gib: float,
) -> MemoryPlan:
    """Memory of one GPU when micro-batches are as large as `batch.tokens_per_rank` allows."""
    # What the recipe needs as it is.
    dtype, precision = config.model.dtype, config.optim.states
    states = state_memory(weights, zero, dtype, ranks, states=precision)
    memory = passes.at(config.batch.tokens_per_rank)
    available, runtime = memory_gib * GIB, RUNTIME_GIB * GIB
    parts = state_parts(states) | {
        "activations": memory.held,
        "head chunk, backward pass": memory.peak - memory.held,
    }
    parts["fragmentation"] = FRAGMENTATION * sum(parts.values())
    parts["CUDA context, NCCL"] = runtime
    update = states.in_update * (1 + FRAGMENTATION) + runtime
    # How large its micro-batches could be.
    room = (available - runtime) / (1 + FRAGMENTATION)
    most = passes.most_tokens(room - states.in_passes) if states.in_update <= room else 0
    most = most if most >= config.data.max_tokens else 0  # training refuses what holds no pair
    return MemoryPlan(parts, update, states.host, available, most)


def state_parts(states: StateMemory) -> dict[str, float]:
    """Model states during a backward pass, in bytes by the names that are printed."""
    return {
        "parameters": states.parameters,
        "gathered parameters": states.gathered,
        "gradients": states.gradients,
        "optimizer": states.optimizer,
        "reference model": states.reference,
        "communication buffers": states.buckets,
    }


@dataclass(frozen=True)
class TimePlan:
    """Expected times for rows of typical length."""

    step: StepTime
    micro_batches: int
    steps: int | None  # of the whole run, if the number of pairs is known

    @property
    def run_seconds(self) -> float | None:
        """Seconds of training, without loading, evaluating and saving."""
        return None if self.steps is None else self.steps * self.step.total


def time_plan(
    config: Config,
    weights: Weights,
    zero: ZeroSettings,
    matrices: MatrixWeights,
    cluster: Cluster,
    pairs: int | None,
    recomputed_share: float,
    rows: RowShape = PAIR,
) -> TimePlan:
    """Expected times of a recipe. `pairs` is the size of the data set, None if unknown.

    `recomputed_share` is that of the layers whose activations are recomputed.
    """
    ranks, number = cluster.ranks, ELEMENT_BYTES[config.model.dtype]
    batch = config.batch
    count = micro_batches_per_step(batch.pairs, rows.tokens, ranks, batch.tokens_per_rank)
    # Communication. ZeRO-3 gathers the policy's weights for two passes, a reference's for one.
    reference = 0
    if config.loss.reads_reference_from("model", "adapter"):
        reference = sum(weights.reference) or weights.num_policy
    passed = weights.num_policy + reference / 2
    volume = zero_volume(
        zero,
        cluster,
        num_weights=passed,
        num_trained=weights.num_trained,
        number_bytes=number,
        micro_batches=count,
    )
    # The update, and copies between GPU and host.
    part = weights.num_trained / (ranks if zero.stage else 1)
    host = 0.0
    if zero.offload_optimizer:
        host += (UPDATE_BYTES + 2 * number * count) * part / HOST_BANDWIDTH
    if zero.offload_parameters:
        host += 2 * count * number * passed / ranks / HOST_BANDWIDTH
    update_bytes = UPDATE_BYTES * ELEMENT_BYTES[config.optim.states] / 4
    on_gpu = 0.0 if zero.offload_optimizer else update_bytes * part
    step = StepTime(
        compute=compute_seconds(_flops(config, matrices, recomputed_share, rows), cluster),
        communication=communication_seconds(volume, cluster),
        update=on_gpu / (cluster.device.memory_bandwidth * 1e9),
        host=host,
        overlaps=zero.overlap_communication,
    )
    # Steps of the run.
    steps = config.train.max_steps
    if pairs is not None:
        all_steps = config.train.epochs * math.ceil(pairs / batch.pairs)
        steps = min(all_steps, steps or all_steps)
    return TimePlan(step, count, steps)


def _flops(
    config: Config, matrices: MatrixWeights, recomputed_share: float, rows: RowShape
) -> float:
    """Floating-point operations of a step over all ranks, recomputation included."""
    pairs = config.batch.pairs
    tokens, scored_tokens = pairs * rows.tokens, pairs * rows.scored_tokens
    needed = step_flops(
        matrices,
        tokens,
        scored_tokens,
        trains_adapter=config.trains_adapter,
        runs_reference=config.loss.reads_reference_from("model", "adapter"),
    )
    return needed + recomputed_flops(
        matrices,
        tokens,
        scored_tokens,
        trains_adapter=config.trains_adapter,
        recomputed_share=recomputed_share,
    )
