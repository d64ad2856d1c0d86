"""Memory of model states: weights, gradients and optimizer at each ZeRO stage.

The counts are those of DeepSpeed 0.19 as `cpo_ds.engine.engine` uses it: torch's AdamW, any number
of backward passes, then one step. Bytes per rank for T trained weights, N weights in all, W ranks,
e bytes for a number of `model.dtype`:

| | stage 0 | stage 1 | stage 2 | stage 3 |
|---|---|---|---|---|
| weights | e N | e N | e N | e N / W, small ones whole as well |
| master copy | 4 T; none in float32 | 4 T / W | 4 T / W | 4 T / W |
| AdamW's moments | 8 T | 8 T / W | 8 T / W | 8 T / W |
| gradients | e T | e T | e T / W | e T / W |

With `optim.states: bfloat16` the master copy takes 2 bytes for a weight and the moments 4, also at
stages at which the copy repeats the weights: DeepSpeed shares nothing between them.

A base in 4 bits (`model.quantization`) takes 0.516 bytes for each of its weights in place of e, and
one matrix at a time is restored for its product.

`benchmarks/planner_check.py` compares the counts with the memory of real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.model.quantization import NF4_BYTES

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STAGE_0_BUCKET = 500_000_000  # elements; gradients are reduced in pieces of this size


@dataclass(frozen=True)
class Weights:
    """Numbers of weights, one for each parameter tensor."""

    trained: tuple[int, ...]
    frozen: tuple[int, ...] = ()
    reference: tuple[int, ...] = ()  # of DPO's frozen second model
    quantized: tuple[int, ...] = ()  # frozen, in 4 bits

    @property
    def num_trained(self) -> int:
        """Trained weights in all."""
        return sum(self.trained)

    @property
    def num_policy(self) -> int:
        """Weights of the policy in all."""
        return sum(self.trained) + sum(self.frozen) + sum(self.quantized)

    def policy_bytes(self, number: int) -> float:
        """Bytes of the policy's weights, with `number` bytes for those that are not quantized."""
        return number * (sum(self.trained) + sum(self.frozen)) + NF4_BYTES * sum(self.quantized)


@dataclass(frozen=True)
class StateMemory:
    """Bytes of model states on one rank, by purpose."""

    parameters: float
    reference: float
    optimizer: float  # master copy and moments
    gradients: float  # held from a step's first backward pass to its update; in ZeRO-3 always
    buckets: float  # gradients on their way to other ranks; in ZeRO-3 held always
    gathered: float  # weights made whole for the pass (ZeRO-3), or restored from 4 bits
    update: float  # additional during the update
    host: float  # in the host's memory, if something is offloaded
    keeps_all: bool  # gradients and buckets stay between steps (ZeRO-3)
    keeps_buckets: bool  # buckets stay until the update

    @property
    def at_rest(self) -> float:
        """Bytes between two steps."""
        standing = self.parameters + self.reference + self.optimizer
        return standing + (self.gradients + self.buckets if self.keeps_all else 0.0)

    @property
    def before_update(self) -> float:
        """Bytes between a step's last backward pass and its update."""
        standing = self.parameters + self.reference + self.optimizer + self.gradients
        return standing + (self.buckets if self.keeps_buckets else 0.0)

    @property
    def in_passes(self) -> float:
        """Bytes during a backward pass, without activations."""
        standing = self.parameters + self.reference + self.optimizer + self.gradients
        return standing + self.buckets + self.gathered

    @property
    def in_update(self) -> float:
        """Bytes during the update, when most is held."""
        return self.before_update + self.update


def state_memory(
    weights: Weights, zero: ZeroSettings, dtype: str, ranks: int, *, states: str = "float32"
) -> StateMemory:
    """Memory of one of `ranks` ranks. Raises `ValueError` for an unknown stage.

    `states` is the precision of the master copy and the moments.
    """
    if zero.stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO has no stage {zero.stage}")
    number = ELEMENT_BYTES[dtype]
    if zero.stage == 0:
        return _replicated(weights, number, ranks)
    split = _sharded if zero.stage == 3 else _split_optimizer
    return split(weights, zero, number, ranks, ELEMENT_BYTES[states])


def _replicated(weights: Weights, number: int, ranks: int) -> StateMemory:
    """Stage 0: all states on every rank. In 16 bits DeepSpeed adds a float32 copy of weights."""
    trained = weights.num_trained
    # DeepSpeed copies gradients, a piece at a time, to reduce them over ranks.
    reduces = ranks > 1 or number < 4  # `Engine` switches that off for one float32 rank
    flat = reduces * number * min(trained, _STAGE_0_BUCKET)
    return StateMemory(
        parameters=weights.policy_bytes(number),
        reference=number * sum(weights.reference),
        optimizer=(8 if number == 4 else 12) * trained,
        gradients=number * trained,
        buckets=0.0,
        gathered=number * max(weights.quantized, default=0),  # restored for its product
        update=flat if number == 4 else max(flat, (4 - number) * trained),
        host=0.0,
        keeps_all=False,
        keeps_buckets=False,
    )


def _split_optimizer(
    weights: Weights, zero: ZeroSettings, number: int, ranks: int, state: int
) -> StateMemory:
    """Stages 1 and 2: whole weights, an equal part of the optimizer on each rank.

    `state` is the bytes of a number of the optimizer's.
    """
    trained, part = weights.num_trained, weights.num_trained / ranks
    # Buckets: DeepSpeed has a second one if communication overlaps with computation.
    buffers = (1 + zero.overlap_communication) * zero.contiguous_gradients
    # At stage 2 each pass copies a bucket to reduce it. It also fills a new copy of this rank's
    # part of the gradients, to be added to the old one.
    in_pass = min(zero.reduce_bucket, trained) + part if zero.stage == 2 else 0.0
    whole = number * trained if zero.stage == 1 else number * part
    # Optimizer: a copy of the weights and two moments. Gradients are joined for the update, and
    # then copied if the optimizer's precision is another one.
    copied = number if state == number else number + state
    optimizer, host, gradients, update = 3 * state * part, 0.0, whole, copied * part
    if zero.offload_optimizer:
        host = (12 + 4 + 2 * number) * part
        optimizer = number * max(weights.trained, default=0)  # one gradient on its way to the host
        gradients, update = (whole if zero.stage == 1 else 0.0), 0.0
    return StateMemory(
        parameters=weights.policy_bytes(number),
        reference=number * sum(weights.reference),
        optimizer=optimizer,
        gradients=gradients,
        buckets=number * (buffers * zero.reduce_bucket + in_pass),
        gathered=number * max(weights.quantized, default=0),  # restored for its product
        update=update,
        host=host,
        keeps_all=False,
        keeps_buckets=zero.stage == 1,
    )


def _sharded(
    weights: Weights, zero: ZeroSettings, number: int, ranks: int, state: int
) -> StateMemory:
    """Stage 3: all states split. Small weights are kept whole too, larger ones made whole for use.

    `persistence_threshold` is the size up to which a weight is small, `state` the bytes of a number
    of the optimizer's.
    """
    trained, part = weights.num_trained, weights.num_trained / ranks
    policy = (*weights.trained, *weights.frozen)
    # Weights.
    small = zero.persistence_threshold
    parameters, reference = (
        number * (sum(sizes) / ranks + _small(sizes, small) * (ranks > 1))
        for sizes in (policy, weights.reference)
    )
    secondary = zero.secondary_partition
    if secondary > 1:  # a second copy of the weights, split within a node
        parameters += number * sum(policy) / secondary
    # Optimizer and gradients, and what is offloaded to the host.
    optimizer, gradients, host = 3 * state * part, number * part, 0.0
    update = (number if state == number else number + state) * min(part, zero.sub_group)
    if zero.offload_optimizer:
        host += (12 + 4 + number) * part
        optimizer = gradients = update = 0.0
    if zero.offload_parameters:
        host += number * (sum(policy) + sum(weights.reference)) / ranks
        parameters, reference = (
            number * _small(sizes, small) for sizes in (policy, weights.reference)
        )
    # Communication.
    used = zero.reduce_bucket * zero.contiguous_gradients
    # Input and output of a reduction. If one bucket holds all gradients, it is reduced after the
    # pass, when gathered weights are free again.
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
    """Number of weights in tensors that stay whole."""
    return sum(size for size in sizes if size <= threshold)


def _gathered(sizes: tuple[int, ...], zero: ZeroSettings) -> float:
    """Number of weights whole at once: as many as may live, and those being prefetched."""
    large = [size for size in sizes if size > zero.persistence_threshold]
    live = max(min(sum(large), zero.max_live_parameters), max(large, default=0))
    return live + min(sum(large), zero.prefetch_bucket)
