"""One rank of the measurement: real all-reduces within hosts, over all ranks, between neighbours.

Backend and network interface are found as training finds them. Each group's first rank prints a
line of JSON for each result, at once, so that a later one that hangs takes none with it.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from cpo_ds.ranks.interfaces import choose_interface

_REPEATS = 5
_SECONDS_EACH = 4.0  # no further repeat after so long


def bus_bandwidth(size: float, seconds: float, ranks: int) -> float:
    """Bytes a second that each rank's link carries: 2(n-1)/n x size / time.

    A ring all-reduce sends that many times the buffer over every link, so the figure can be held
    against the hardware's whatever the number of ranks: github.com/NVIDIA/nccl-tests,
    doc/PERFORMANCE.md.
    """
    return 2 * (ranks - 1) / ranks * size / seconds


def groups_of(slots: Sequence[int]) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """What is measured, as (kind, hosts, ranks): `within` a host, `link` of two hosts, `all`.

    Links are those of the ring that an all-reduce goes round, by the first rank of each host.
    """
    first = [sum(slots[:host]) for host in range(len(slots))]
    groups: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        ("within", (host,), tuple(range(first[host], first[host] + count)))
        for host, count in enumerate(slots)
        if count > 1
    ]
    hosts = range(len(slots))
    for host in hosts:
        other = (host + 1) % len(slots)
        if other != host and not (len(slots) == 2 and host == 1):
            groups.append(("link", (host, other), (first[host], first[other])))
    if len(slots) > 1:
        groups.append(("all", tuple(hosts), tuple(range(sum(slots)))))
    return groups


def main(slots: list[int], size: int, seconds: int) -> None:
    """Measures with `size` bytes; the process ends when `seconds` are over, whatever it waits for.

    The place among the ranks comes by torch's variables.
    """
    signal.alarm(seconds)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it when it is imported
    import torch
    import torch.distributed as dist

    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if len(slots) > 1:
        choose_interface()
    timeout = timedelta(seconds=seconds)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout)
    buffer = torch.zeros(size // 4, device=device)
    groups = [(*some, dist.new_group(list(some[2]))) for some in groups_of(slots)]
    before = ""
    for kind, hosts, ranks, group in groups:
        if kind == "link" or kind != before:  # hosts measure within themselves at the same time
            dist.barrier(group=control)
        before = kind
        if rank in ranks:
            took = _time_all_reduce(buffer, group)
            if rank == ranks[0]:
                result = {"kind": kind, "hosts": hosts, "ranks": len(ranks), "seconds": took}
                print(json.dumps(result), flush=True)
    dist.barrier(group=control)
    dist.destroy_process_group()


def _time_all_reduce(buffer: Any, group: Any) -> float:
    """Seconds until the last rank has the sum; the median of a few repeats."""
    import torch
    import torch.distributed as dist

    def wait() -> None:
        if buffer.is_cuda:
            torch.cuda.synchronize()

    times: list[float] = []
    dist.all_reduce(buffer, group=group)  # opens connections
    wait()
    while len(times) < _REPEATS and sum(times) < _SECONDS_EACH:
        dist.barrier(group=group)
        wait()
        started = time.perf_counter()
        dist.all_reduce(buffer, group=group)
        wait()
        took = torch.tensor([time.perf_counter() - started], device=buffer.device)
        dist.all_reduce(took, dist.ReduceOp.MAX, group=group)  # so all ranks stop together
        times.append(took.item())
    return statistics.median(times)
