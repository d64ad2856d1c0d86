"""Model states: what DeepSpeed holds of weights, gradients and optimizer at each ZeRO stage.

As DeepSpeed 0.19 does for `cpo_ds.engine.engine`: torch's AdamW, any number of backward passes,
then one step. Bytes per rank for T trained weights, N weights in all, W ranks, e bytes for a
number of `model.dtype`:

| | stage 0 | stage 1 | stage 2 | stage 3 |
|---|---|---|---|---|
| weights | e N | e N | e N | e N / W, small ones whole as well |
| master copy | 4 T; none in float32 | 4 T / W | 4 T / W | 4 T / W |
| AdamW's moments | 8 T | 8 T / W | 8 T / W | 8 T / W |
| gradients | e T | e T | e T / W | e T / W |

`benchmarks/planner_check.py` compares this with what real runs hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpo_ds.engine.zero import ZeroSettings

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STAGE_0_BUCKET = 500_000_000  # elements; gradients are reduced in pieces of this size


@dataclass(frozen=True)
class Weights:
    """Numbers of weights, one for each parameter tensor."""

    trained: tuple[int, ...]
    frozen: tuple[int, ...] = ()
    reference: tuple[int, ...] = ()  # of DPO's frozen second model

    @property
    def num_trained(self) -> int:
        """Trained weights in all."""
        return sum(self.trained)

    @property
    def num_policy(self) -> int:
        """Weights of the policy in all."""
        return sum(self.trained) + sum(self.frozen)


@dataclass(frozen=True)
class StateMemory:
    """Bytes of one rank, by what they are for."""

    parameters: float
    reference: float
    optimizer: float  # master copy and moments
    gradients: float  # from a step's first backward pass to its update; in ZeRO-3 always
    buckets: float  # gradients on their way to other ranks; in ZeRO-3 always
    gathered: float  # weights made whole for the pass (ZeRO-3)
    update: float  # more during the update than before it
    host: float  # in the host's memory, where something is offloaded
    keeps_all: bool  # ZeRO-3: gradients and buckets stay between steps
    keeps_buckets: bool  # they stay until the update

    @property
    def at_rest(self) -> float:
        """Between two steps."""
        standing = self.parameters + self.reference + self.optimizer
        return standing + (self.gradients + self.buckets if self.keeps_all else 0.0)

    @property
    def before_update(self) -> float:
        """Between a step's last backward pass and its update."""
        standing = self.parameters + self.reference + self.optimizer + self.gradients
        return standing + (self.buckets if self.keeps_buckets else 0.0)

    @property
    def in_passes(self) -> float:
        """During a backward pass, without activations."""
        standing = self.parameters + self.reference + self.optimizer + self.gradients
        return standing + self.buckets + self.gathered

    @property
    def in_update(self) -> float:
        """Most during the update."""
        return self.before_update + self.update


def state_memory(weights: Weights, zero: ZeroSettings, dtype: str, ranks: int) -> StateMemory:
    """Bytes that one of `ranks` ranks holds. Raises `ValueError` for an unknown stage."""
    if zero.stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO has no stage {zero.stage}")
    number = ELEMENT_BYTES[dtype]
    if zero.stage == 0:
        return _replicated(weights, number, ranks)
    return (_sharded if zero.stage == 3 else _split_optimizer)(weights, zero, number, ranks)


def _replicated(weights: Weights, number: int, ranks: int) -> StateMemory:
    """Stage 0: torch's optimizer itself in float32, else DeepSpeed's with a float32 copy."""
    trained = weights.num_trained
    reduces = ranks > 1 or number < 4  # `engine.Engine` spares one float32 rank that
    flat = reduces * number * min(trained, _STAGE_0_BUCKET)  # a copy of gradients to be reduced
    return StateMemory(
        parameters=number * weights.num_policy,
        reference=number * sum(weights.reference),
        optimizer=(8 if number == 4 else 12) * trained,
        gradients=number * trained,
        buckets=0.0,
        gathered=0.0,
        update=flat if number == 4 else max(flat, (4 - number) * trained),
        host=0.0,
        keeps_all=False,
        keeps_buckets=False,
    )


def _split_optimizer(weights: Weights, zero: ZeroSettings, number: int, ranks: int) -> StateMemory:
    """Stages 1 and 2: whole weights, an equal part of the optimizer on each rank."""
    trained, part = weights.num_trained, weights.num_trained / ranks
    buffers = (1 + zero.overlap_communication) * zero.contiguous_gradients
    # At stage 2 each pass copies a bucket to reduce it, and fills this rank's part anew to add it.
    in_pass = min(zero.reduce_bucket, trained) + part if zero.stage == 2 else 0.0
    whole = number * trained if zero.stage == 1 else number * part
    optimizer, host, gradients, update = 12 * part, 0.0, whole, (number + 4) * part
    if zero.offload_optimizer:
        host = (12 + 4 + 2 * number) * part
        optimizer = number * max(weights.trained, default=0)  # one gradient on its way
        gradients, update = (whole if zero.stage == 1 else 0.0), 0.0
    elif number == 4:
        update = number * part
    return StateMemory(
        parameters=number * weights.num_policy,
        reference=number * sum(weights.reference),
        optimizer=optimizer,
        gradients=gradients,
        buckets=number * (buffers * zero.reduce_bucket + in_pass),
        gathered=0.0,
        update=update,
        host=host,
        keeps_all=False,
        keeps_buckets=zero.stage == 1,
    )


def _sharded(weights: Weights, zero: ZeroSettings, number: int, ranks: int) -> StateMemory:
    """Stage 3: all split; small weights whole as well, larger ones made whole for use."""
    trained, part = weights.num_trained, weights.num_trained / ranks
    policy = (*weights.trained, *weights.frozen)
    small = zero.persistence_threshold
    parameters, reference = (
        number * (sum(sizes) / ranks + _small(sizes, small) * (ranks > 1))
        for sizes in (policy, weights.reference)
    )
    secondary = zero.secondary_partition
    if secondary > 1:  # a second copy of the weights, split within a node
        parameters += number * sum(policy) / secondary
    optimizer, gradients, host = 12 * part, number * part, 0.0
    update = (number + 4 if number < 4 else number) * min(part, zero.sub_group)
    if zero.offload_optimizer:
        host += (12 + 4 + number) * part
        optimizer = gradients = update = 0.0
    if zero.offload_parameters:
        host += number * (sum(policy) + sum(weights.reference)) / ranks
        parameters, reference = (
            number * _small(sizes, small) for sizes in (policy, weights.reference)
        )
    used = zero.reduce_bucket * zero.contiguous_gradients
    # In and out of a reduction; where one bucket holds all, that comes when the pass is over.
    moved = zero.reduce_bucket * (1 + 1 / ranks) if trained > zero.reduce_bucket else 0.0
    gathers = ranks > 1 or zero.offload_parameters
    return StateMemory(
        parameters=parameters,
        reference=reference,
        optimizer=optimizer,
        gradients=gradients,
        buckets=number * used,
        gathered=number * (_gathered(policy, zero) + moved) if gathers else 0.0,
        update=update,
        host=host,
        keeps_all=True,
        keeps_buckets=True,
    )


def _small(sizes: tuple[int, ...], threshold: int) -> int:
    """Weights in tensors that stay whole."""
    return sum(size for size in sizes if size <= threshold)


def _gathered(sizes: tuple[int, ...], zero: ZeroSettings) -> float:
    """Weights whole at once: as many as may live, and what is being fetched."""
    large = [size for size in sizes if size > zero.persistence_threshold]
    live = max(min(sum(large), zero.max_live_parameters), max(large, default=0))
    return live + min(sum(large), zero.prefetch_bucket)
