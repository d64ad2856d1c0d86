"""The time that an optimizer step is expected to take; every assumption is a named constant."""

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
    "communication hides behind computation if overlap_comm is on, else it adds",
    f"{HOST_BANDWIDTH / 1e9:.0f} GB/s for each GPU to its host, if something is offloaded",
)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by cause."""

    compute: float
    communication: float
    update: float
    host: float  # copies between GPU and host, if something is offloaded
    overlaps: bool  # communication runs beside computation

    @property
    def total(self) -> float:
        """Seconds of the whole step; of overlapping causes the longer one counts."""
        both = max if self.overlaps else lambda one, other: one + other
        return both(self.compute, self.communication) + self.update + self.host

    @property
    def bound(self) -> str:
        """The cause that takes longest."""
        parts = {
            "computation": self.compute,
            "communication": self.communication,
            "the update": self.update,
            "the way to the host": self.host,
        }
        return max(parts, key=lambda name: parts[name])


def compute_seconds(flops: float, cluster: Cluster) -> float:
    """Seconds of a step's matrix products, spread evenly over all GPUs."""
    return flops / (cluster.ranks * cluster.device.peak_bf16_tflops * 1e12 * COMPUTE_EFFICIENCY)


def communication_seconds(volume: Volume, cluster: Cluster) -> float:
    """Seconds of a step's collectives."""
    return volume.seconds(cluster.device, LINK_EFFICIENCY)


def micro_batches_per_step(pairs: int, pair_tokens: float, ranks: int, budget: int) -> int:
    """Micro-batches of each rank: as few as `budget`, tokens of a micro-batch, allows."""
    per_batch = max(1, math.floor(budget / pair_tokens))
    return max(1, math.ceil(math.ceil(pairs / ranks) / per_batch))
