"""The `zero_optimization` section of a DeepSpeed file as typed fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ZeroSettings:
    """ZeRO settings that decide memory and communication; the defaults are DeepSpeed's.

    Sizes are numbers of elements, not bytes.
    """

    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    overlap_communication: bool = False
    contiguous_gradients: bool = True
    reduce_bucket: int = 500_000_000
    prefetch_bucket: int = 50_000_000
    persistence_threshold: int = 100_000
    max_live_parameters: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    secondary_partition: int = 1  # ZeRO++ hpZ: ranks that hold a whole copy of the weights
    quantized_weights: bool = False  # ZeRO++ qwZ
    quantized_gradients: bool = False  # ZeRO++ qgZ


def zero_settings(section: dict[str, Any]) -> ZeroSettings:
    """Converts a `zero_optimization` section that was checked already."""

    def offloads(name: str) -> bool:
        return (section.get(name) or {}).get("device", "none") != "none"

    def size(name: str, default: int) -> int:
        return int(section.get(name, default))

    default = ZeroSettings()
    stage = int(section.get("stage", 0))
    overlaps = section.get("overlap_comm")
    return ZeroSettings(
        stage=stage,
        # DeepSpeed ignores offloading at lower stages.
        offload_optimizer=stage > 0 and offloads("offload_optimizer"),
        offload_parameters=stage == 3 and offloads("offload_param"),
        # A file that is silent about overlap_comm has it on at stage 3 alone.
        overlap_communication=stage == 3 if overlaps is None else bool(overlaps),
        contiguous_gradients=bool(section.get("contiguous_gradients", True)),
        reduce_bucket=size("reduce_bucket_size", default.reduce_bucket),
        prefetch_bucket=size("stage3_prefetch_bucket_size", default.prefetch_bucket),
        persistence_threshold=size(
            "stage3_param_persistence_threshold", default.persistence_threshold
        ),
        max_live_parameters=size("stage3_max_live_parameters", default.max_live_parameters),
        max_reuse_distance=size("stage3_max_reuse_distance", default.max_reuse_distance),
        sub_group=size("sub_group_size", default.sub_group),
        secondary_partition=size("zero_hpz_partition_size", default.secondary_partition),
        quantized_weights=bool(section.get("zero_quantized_weights", False)),
        quantized_gradients=bool(section.get("zero_quantized_gradients", False)),
    )
