"""The GPUs of this machine, without torch, and the ranks that a run starts on them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cpo_ds.errors import UserError

_RANKS_PER_CORE = 2  # to try things out; many more would only crawl


def ranks_and_gpus(wanted: int | None) -> tuple[int, list[str]]:
    """The number of ranks and the GPUs they get, none on a CPU; None wants all GPUs.

    Raises `UserError` if this machine has fewer GPUs, or far fewer cores, than wanted.
    """
    gpus = gpus_here()
    if not gpus:
        cores = len(os.sched_getaffinity(0))
        if (ranks := wanted or 1) > (most := _RANKS_PER_CORE * cores):
            raise UserError(
                f"{ranks} ranks are asked for, but this machine has no GPU and {cores} CPU "
                f"core(s), which are enough for {most}; give --gpus {most} or less."
            )
        return ranks, []
    if wanted and wanted > len(gpus):
        shown = " in CUDA_VISIBLE_DEVICES" if os.environ.get("CUDA_VISIBLE_DEVICES") else ""
        raise UserError(
            f"{wanted} GPUs are asked for, but this machine has {len(gpus)}{shown}; give --gpus "
            f"{len(gpus)} or less, or list several machines in a --hostfile."
        )
    gpus = gpus[: wanted or len(gpus)]
    return len(gpus), gpus


def gpus_here(
    environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")
) -> list[str]:
    """Numbers of the GPUs that a process may use; those of CUDA_VISIBLE_DEVICES if it is set."""
    count = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))
    if not count and (devices / "kfd").exists():
        count = sum(1 for _ in devices.glob("dri/renderD*"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if not count or visible is None:
        return [str(number) for number in range(count)]
    names = (name.strip() for name in visible.split(","))
    return [name for name in names if name and name != "-1"]
