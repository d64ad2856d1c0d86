"""How long an optimizer step is expected to take; every assumption is a named constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cpo_ds.planner.communication import Cluster, Volume

COMPUTE_EFFICIENCY = 0.45  # of the data sheet's peak in matrix products
LINK_EFFICIENCY = 0.7  # of the data sheet's bandwidth in collectives
HOST_BANDWIDTH = 20e9  # bytes/s between a GPU and the host, and of a rank's AdamW on the host
UPDATE_BYTES = 28  # read and written per trained weight: weight, gradient and two moments, float32

ASSUMPTIONS = (
    f"matrix products reach {COMPUTE_EFFICIENCY:.0%} of the data sheet's peak",
    f"collectives reach {LINK_EFFICIENCY:.0%} of the data sheet's bandwidth",
    "communication hides behind computation where overlap_comm is on, else it adds",
    f"{HOST_BANDWIDTH / 1e9:.0f} GB/s for each GPU to its host, where something is offloaded",
)


@dataclass(frozen=True)
class Work:
    """What one step computes, over all ranks."""

    body_weights: float  # in matrix products
    head_weights: float
    tokens: float
    scored_tokens: float
    trains_adapter: bool
    recomputes: bool  # gradient checkpointing

    @property
    def flops(self) -> float:
        """Floating-point operations, recomputation included; attention's own are left out.

        2 per weight and token forward, 2 for the gradient of activations, 2 for that of trained
        weights; the head is computed again where it is trained.
        """
        body = (4 if self.trains_adapter else 6) + 2 * self.recomputes
        head = 4 if self.trains_adapter else 8
        return (
            body * self.body_weights * self.tokens + head * self.head_weights * self.scored_tokens
        )


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what takes them."""

    compute: float
    communication: float
    update: float
    host: float
    overlaps: bool

    @property
    def total(self) -> float:
        """All of it, hidden communication left out."""
        both = max if self.overlaps else lambda one, other: one + other
        return both(self.compute, self.communication) + self.update + self.host

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "computation": self.compute,
            "communication": self.communication,
            "the update": self.update,
            "the way to the host": self.host,
        }
        return max(parts, key=lambda name: parts[name])


def compute_seconds(flops: float, cluster: Cluster) -> float:
    """Time of a step's matrix products, spread evenly over all GPUs."""
    return flops / (cluster.ranks * cluster.device.peak_bf16_tflops * 1e12 * COMPUTE_EFFICIENCY)


def communication_seconds(volume: Volume, cluster: Cluster) -> float:
    """Time of a step's collectives."""
    return volume.seconds(cluster.device, LINK_EFFICIENCY)


def micro_batches_per_step(pairs: int, pair_tokens: float, ranks: int, budget: int) -> int:
    """Micro-batches of each rank: the fewest that fit the budget."""
    per_batch = max(1, math.floor(budget / pair_tokens))
    return max(1, math.ceil(math.ceil(pairs / ranks) / per_batch))
