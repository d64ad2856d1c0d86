"""Predicts the bytes and seconds of a step of `link_speed.py` between hosts. Pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.devices import Device
from cpo_ds.engine.zero import ZeroSettings, zero_settings
from cpo_ds.errors import UserError
from cpo_ds.planner.communication import Cluster, gather, zero_volume

ROOT = Path(__file__).resolve().parents[2]
_LARGE = 7e9  # weights of the model whose proportions the small one gets
NUMBER_BYTES = 4  # float32
CONFIGURATIONS = {
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "zero3-kept": "ZeRO-3, weights kept between the passes",
    "hierarchical": "hierarchical partitioning",
}


@dataclass(frozen=True)
class Link:
    """The link between the hosts: Mbit/s each way, one-way delay in ms; None means no limit."""

    rate_mbit: float | None = None
    delay_ms: float | None = None

    @property
    def name(self) -> str:
        """The link as tables name it."""
        rate = f"{self.rate_mbit:g} Mbit/s" if self.rate_mbit else ""
        delay = f"{self.delay_ms:g} ms" if self.delay_ms else ""
        return ", ".join(part for part in (rate, delay) if part) or "no limit"


def parse_link(text: str) -> Link:
    """Parses `none`, `200` (Mbit/s) or `200/2` (and 2 ms of delay). Raises `UserError`."""
    if text == "none":
        return Link()
    rate, slash, delay = text.partition("/")
    try:
        link = Link(float(rate), float(delay) if slash else None)
    except ValueError:
        link = Link(-1.0)
    if not 1 <= (link.rate_mbit or 0) <= 1e5 or not 0 < (link.delay_ms or 1) <= 1000:
        raise UserError(
            f"--links: {text} is no link; give none, a rate of 1 to 100000 Mbit/s such as 200, or "
            "a rate and a one-way delay of up to 1000 ms such as 200/2."
        )
    return link


def deepspeed_settings(configuration: str, num_weights: int, ranks_per_host: int) -> dict[str, Any]:
    """Returns the DeepSpeed file of a configuration, scaled down to this model.

    ds_configs/zero3.json keeps small parameters whole and fetches others ahead, by limits made for
    7 billion weights. With those limits a small model would stay whole on every rank. In
    `zero3-kept` it stays whole from the forward to the backward pass; elsewhere nothing is kept
    between the passes, since a prediction counts two gathers.
    """
    name = "zero2" if configuration == "zero2" else "zero3"
    text = (ROOT / "ds_configs" / f"{name}.json").read_text(encoding="utf-8")
    settings = json.loads(text)
    zero = settings["zero_optimization"]
    scaled = ["stage3_param_persistence_threshold"] if name == "zero3" else []
    if configuration in ("zero3", "hierarchical"):
        scaled += ["stage3_prefetch_bucket_size", "stage3_max_live_parameters"]
        zero["stage3_max_reuse_distance"] = 0
    for key in scaled:
        zero[key] = round(zero[key] * num_weights / _LARGE)
    if configuration == "hierarchical":
        zero["zero_hpz_partition_size"] = ranks_per_host
    return settings


@dataclass(frozen=True)
class Prediction:
    """Predicted bytes through a host's adapter in one step, in each direction."""

    planner: float  # by the volumes of `cpo-ds plan`, whose reduce-scatter is NCCL's
    gloo: float  # with Gloo's, which is a whole all-reduce


def predict(
    settings: dict[str, Any], hosts: int, ranks_per_host: int, num_weights: int, micro_batches: int
) -> Prediction:
    """Predicts a step in which all weights are trained in float32."""
    zero: ZeroSettings = zero_settings(settings["zero_optimization"])
    # Bandwidths do not matter to volumes; the planner's are those of one GPU, which has a part of
    # its host's adapter.
    device = Device("CPU", 0.0, 0.0, 0.0, "", 0.0, "", 0.0)
    cluster = Cluster(device, ranks_per_host, hosts)
    volume = zero_volume(
        zero,
        cluster,
        num_weights=num_weights,
        num_trained=num_weights,
        number_bytes=NUMBER_BYTES,
        micro_batches=micro_batches,
    )
    more = gather(NUMBER_BYTES * num_weights, cluster) * (micro_batches if zero.stage == 3 else 0)
    return Prediction(volume.network * ranks_per_host, (volume + more).network * ranks_per_host)


def link_seconds(num_bytes: float, link: Link) -> float:
    """Seconds that a link takes for a number of bytes in one direction."""
    return 8e-6 * num_bytes / link.rate_mbit if link.rate_mbit else 0.0


def delay_seconds(collectives: dict[str, dict[str, int]], ranks: int, link: Link) -> float:
    """The least time that the delay adds to a step: each collective waits for all of its rounds.

    `collectives` come from `CollectiveCounter` in jobs/link_worker.py. A ring of R ranks takes
    R - 1 rounds for a gather. An all-reduce takes twice as many, and so does Gloo's reduce-scatter.
    Any other kind is counted as one round. Each round crosses the link.
    """
    rounds = {"allgather_base": ranks - 1}
    rounds |= dict.fromkeys(("allreduce", "reduce_scatter_base"), 2 * (ranks - 1))
    count = sum(
        rounds.get(name.partition(",")[0], 1) * seen["count"]
        for name, seen in collectives.items()
        if name.endswith("between hosts")
    )
    return count * (link.delay_ms or 0.0) / 1000
