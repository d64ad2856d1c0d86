"""Checks of hierarchical partitioning (hpZ) and int8 weights (qwZ), two options of ZeRO-3.

With hpZ each group of consecutive ranks keeps a second copy of the weights, cut over its ranks.
All gathers but the first after an update stay inside the group, which ought to be a host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cpo_ds.errors import UserError
from cpo_ds.ranks.place import Place

HPZ = "zero_hpz_partition_size"
QWZ = "zero_quantized_weights"


def group_size(value: Any, cluster: Place, path: Path) -> int:
    """The number of ranks in an hpZ group, from the value in the DeepSpeed file at `path`.

    `auto` makes each host a group. A group of all ranks is the same as none and gives 1. Raises
    `UserError` if groups of that size do not fill the ranks.
    """
    size = cluster.local_world_size if value == "auto" else int(value)
    if size in (0, cluster.world_size):
        return 1
    if cluster.world_size % size == 0:
        return size
    if value == "auto":
        raise UserError(
            f"{path}: {HPZ} is auto, but this host has {size} of {cluster.world_size} ranks, so "
            "hosts differ in their number of ranks; make the hosts' slots equal, or use "
            "ds_configs/zero3.json."
        )
    raise UserError(
        f"{path}: {HPZ} is {size}, which does not divide the {cluster.world_size} rank(s) of this "
        f'run; set it to "auto" (the ranks of a host, here {cluster.local_world_size}), or use '
        "ds_configs/zero3.json."
    )


def group_warning(sizes: Sequence[int], hosts: Sequence[str]) -> str | None:
    """A warning about groups that are not hosts, or None. `sizes` and `hosts` are by rank.

    Raises `UserError` if group sizes differ between ranks: such groups would hang.
    """
    if len(set(sizes)) > 1:
        counts = ", ".join(f"{host}: {hosts.count(host)}" for host in dict.fromkeys(hosts))
        raise UserError(
            f"{HPZ} is not the same on all ranks (it is {min(sizes)} to {max(sizes)}; ranks by "
            f"host: {counts}); make the hosts' slots equal, or use ds_configs/zero3.json."
        )
    size = sizes[0]
    if size <= 1:
        return None
    # A group that is wider than a host sends weights over the network in each pass.
    groups = [hosts[start : start + size] for start in range(0, len(hosts), size)]
    wide = next((group for group in groups if len(set(group)) > 1), None)
    if wide is not None:
        return (
            f"{HPZ} {size} makes groups over several hosts ({', '.join(dict.fromkeys(wide))}), "
            'between which weights still travel in each pass; "auto" makes each host a group'
        )
    # Several groups on a host hold more copies than the network gains from.
    on_host = hosts.count(hosts[0])
    if size < on_host:
        return (
            f"{HPZ} {size} keeps {on_host // size} copies of the weights on a host of {on_host} "
            'ranks, but the network gains nothing from more than one; "auto" keeps one'
        )
    return None


def why_no_quantizer() -> str | None:
    """The reason why DeepSpeed's int8 kernels cannot run on this machine, or None if they can.

    DeepSpeed compiles them on first use, with nvcc.
    """
    if not torch.cuda.is_available():
        return "there is no CUDA GPU here"
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import CUDA_HOME

    is_compiled = installed_ops.get("quantizer", False)
    if is_compiled or (CUDA_HOME and (Path(CUDA_HOME) / "bin" / "nvcc").is_file()):
        return None
    return (
        "DeepSpeed compiles them with nvcc, which is not installed (install the CUDA toolkit "
        f"{torch.version.cuda}, and set CUDA_HOME)"
    )


def check_int8_parts(sizes: Mapping[str, int], ranks: int) -> None:
    """Raises `UserError` for weights that int8 gathers would get wrong or fail at.

    `sizes` are numbers of elements by name. DeepSpeed's kernel needs a multiple of 8 on each rank.
    If the last rank's part is padded, it dequantizes a parameter that is gathered alone with the
    scales of the wrong block.
    """
    for name, size in sizes.items():
        if size % (8 * ranks):
            raise UserError(
                f"{QWZ}: the {size} numbers of {name} are no multiple of 8 for each of {ranks} "
                "ranks, as DeepSpeed's int8 kernel needs; set it to false (as in "
                "ds_configs/zero3-hierarchical.json), or use another number of ranks."
            )
