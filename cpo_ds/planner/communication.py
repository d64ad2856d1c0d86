"""Bytes that ranks exchange in one optimizer step, and the seconds that their links take.

With N weights, T of them trained, e bytes a number, and k micro-batches a step, a rank's volume is

| | weights, forward | weights, backward | gradients | after the update |
|---|---|---|---|---|
| stage 0 | | | 2 e T once | |
| stages 1 and 2 | | | 2 e T, once or k times | e T |
| ZeRO-3 | k e N | k e (N - K) | k e T | |
| ZeRO++ | T (int8), and k N inside a group | k (N - K), inside the group | k T / 2 (int4) | |
| hierarchical, MiCS | k e N, inside a group | the same | k e T, inside a group | 2 e T / group |

ZeRO: arXiv 1910.02054, section 7. ZeRO++: arXiv 2306.10209. MiCS: arXiv 2205.00119.
DeepSpeed's stages 1 and 2 reduce by an all-reduce, hence the 2. K weights stay whole from forward
to backward pass (`kept_whole`): all of a small model, little of a large one. Gradient checkpointing
gathers nothing a third time: a layer's weights stay from its recomputation to its backward pass.
The copy that ZeRO++ keeps in each group (hpZ) is filled by the first gather after an update, and
serves all others until the next; that of a frozen weight serves to the end.
`benchmarks/link_speed.py` counts the bytes that really pass between two hosts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cpo_ds.devices import Device
from cpo_ds.engine.zero import ZeroSettings


@dataclass(frozen=True)
class Cluster:
    """A cluster of equal nodes with equal GPUs."""

    device: Device
    gpus: int  # of a node
    nodes: int = 1

    @property
    def ranks(self) -> int:
        """GPUs in all."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Volume:
    """Bytes of one step on one GPU's links."""

    node: float  # through the link to the other GPUs of its node
    network: float  # through its network adapter

    def __add__(self, other: Volume) -> Volume:
        return Volume(self.node + other.node, self.network + other.network)

    def __mul__(self, times: float) -> Volume:
        return Volume(self.node * times, self.network * times)

    def seconds(self, device: Device, efficiency: float) -> float:
        """Time on links that reach a share of their bandwidth; both are used at once."""
        node = self.node / (device.node_bandwidth * 1e9)
        network = self.network / (device.network_bandwidth * 1e9)
        return max(node, network) / efficiency


def gather(size: float, cluster: Cluster, *, nodes: int | None = None) -> Volume:
    """All-gather or reduce-scatter of `size` bytes over `nodes` whole nodes (all of them).

    Each network adapter of a node serves a ring over all ranks. The rings share the bytes, and
    every link of a ring passes on all parts but one.
    """
    nodes = cluster.nodes if nodes is None else nodes
    ranks = nodes * cluster.gpus
    passed = size * (ranks - 1) / ranks
    inside = passed if cluster.gpus > 1 else 0.0
    return Volume(inside, passed / cluster.gpus if nodes > 1 else 0.0)


def all_reduce(size: float, cluster: Cluster) -> Volume:
    """All-reduce of `size` bytes: a reduce-scatter and an all-gather."""
    return gather(size, cluster) * 2


def zero_volume(
    zero: ZeroSettings,
    cluster: Cluster,
    *,
    num_weights: float,
    num_trained: float,
    number_bytes: float,
    micro_batches: int,
) -> Volume:
    """Bytes of one optimizer step; each of the three parts of ZeRO++ may be on or off."""
    weights, gradients = number_bytes * num_weights, number_bytes * num_trained
    # Stages below 3: an all-reduce of gradients, and a gather of updated weights.
    if zero.stage < 3:
        times = micro_batches if zero.stage == 2 else 1
        volume = all_reduce(gradients, cluster) * times
        return volume if zero.stage == 0 else volume + gather(gradients, cluster)
    # Stage 3, weights. int8 has one float32 scale for some thousand numbers: left out here.
    size = num_weights if zero.quantized_weights else weights
    gathers = micro_batches * (2 - kept_whole(zero, num_weights) / num_weights)
    if zero.secondary_partition > 1:
        # The first gather after an update crosses nodes. Frozen weights are not updated.
        once = gather(size * num_trained / num_weights, cluster)
        again = gathers - num_trained / num_weights
        moved = once + gather(size, _group(cluster, zero.secondary_partition)) * again
    else:
        moved = gather(size, cluster) * gathers
    # Stage 3, gradients.
    if zero.quantized_gradients:
        # Quantized to int4 before each of two exchanges, all to all: in the node, between nodes.
        apart = num_trained / 2 * (cluster.nodes - 1) / cluster.nodes / cluster.gpus
        reduction = gather(num_trained / 2, cluster, nodes=1) + Volume(0.0, apart)
    else:
        reduction = gather(gradients, cluster)
    return moved + reduction * micro_batches


def kept_whole(zero: ZeroSettings, num_weights: float) -> float:
    """Weights that ZeRO-3 gathers once for both passes: those of the last layers.

    A weight stays if at most `stage3_max_reuse_distance` weights are used before it is used again.
    Each layer after it is used twice in between, hence the half. A weight also stays if the
    prefetcher reaches its use in the backward pass before it is freed. The prefetcher runs ahead of
    the computation until `stage3_max_live_parameters` weights are gathered.
    """
    ahead = zero.max_live_parameters if zero.prefetch_bucket else 0
    return min(num_weights, max(zero.max_reuse_distance / 2, ahead))


def _group(cluster: Cluster, ranks: int) -> Cluster:
    """The GPUs of one group of consecutive ranks."""
    gpus = min(ranks, cluster.gpus)
    return replace(cluster, gpus=gpus, nodes=max(1, ranks // gpus))


def hierarchical_volume(
    cluster: Cluster,
    *,
    group_nodes: int,
    num_weights: float,
    num_trained: float,
    number_bytes: float,
    micro_batches: int,
) -> Volume:
    """Bytes of one optimizer step if each group of whole nodes holds a copy of the states (MiCS).

    Gathers and reductions stay in the group. Once a step each rank's part of the gradients is
    summed over the groups. Raises `ValueError` if groups do not fill the nodes.
    """
    if cluster.nodes % group_nodes:
        raise ValueError(f"{cluster.nodes} nodes are no multiple of groups of {group_nodes}")
    inside = gather(number_bytes * num_weights, cluster, nodes=group_nodes) * 2
    inside += gather(number_bytes * num_trained, cluster, nodes=group_nodes)
    groups = cluster.nodes // group_nodes
    part = number_bytes * num_trained / (group_nodes * cluster.gpus)
    across = Volume(0.0, 2 * part * (groups - 1) / groups)
    return inside * micro_batches + across
