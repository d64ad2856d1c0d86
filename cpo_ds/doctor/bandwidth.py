"""One rank of the bandwidth measurement: all-reduces within hosts, between hosts, over all ranks.

The ranks find backend and network interface the same way as in training. Each group's first rank
prints a result as soon as it has it, as a line of JSON. So a later all-reduce that hangs loses
nothing.
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
_SECONDS_EACH = 4.0  # no further repeat once a group has measured this long


def bus_bandwidth(size: float, seconds: float, ranks: int) -> float:
    """Returns the bytes a second that each rank's link carries: 2(n-1)/n x size / seconds.

    A ring all-reduce of n ranks sends 2(n-1)/n times the buffer over every link. So the figure can
    be compared with the hardware's bandwidth for any n: github.com/NVIDIA/nccl-tests,
    doc/PERFORMANCE.md.
    """
    return 2 * (ranks - 1) / ranks * size / seconds


def groups_of(slots: Sequence[int]) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Returns the groups of ranks to measure, each as (kind, hosts, ranks).

    `slots` is the number of ranks of each host. The kind is `within` for the ranks of one host,
    `link` for the first ranks of two neighbours in the ring of hosts, and `all`.
    """
    # A number for each rank, host by host; hosts with one rank have nothing to measure within.
    first = [sum(slots[:host]) for host in range(len(slots))]
    groups: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        ("within", (host,), tuple(range(first[host], first[host] + count)))
        for host, count in enumerate(slots)
        if count > 1
    ]

    # The ring of hosts; two hosts have one link, not two.
    hosts = range(len(slots))
    for host in hosts:
        other = (host + 1) % len(slots)
        if other != host and not (len(slots) == 2 and host == 1):
            groups.append(("link", (host, other), (first[host], first[other])))
    if len(slots) > 1:
        groups.append(("all", tuple(hosts), tuple(range(sum(slots)))))
    return groups


def main(slots: list[int], size: int, seconds: int) -> None:
    """Measures all-reduces of `size` bytes over all groups of `groups_of`.

    Torch's variables (RANK, ...) say which rank this is. A process that takes longer than
    `seconds` ends by SIGALRM, whatever it waits for.
    """
    signal.alarm(seconds)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it when it is imported
    import torch
    import torch.distributed as dist

    # Connect all ranks as training does: NCCL with GPUs, else Gloo.
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

    # Links are measured one after the other; hosts measure within themselves at the same time.
    buffer = torch.zeros(size // 4, device=device)
    groups = [
        (kind, hosts, ranks, dist.new_group(list(ranks))) for kind, hosts, ranks in groups_of(slots)
    ]
    before = ""
    for kind, hosts, ranks, group in groups:
        if kind == "link" or kind != before:
            dist.barrier(group=control)
        before = kind
        if rank in ranks:
            elapsed = _time_all_reduce(buffer, group)
            if rank == ranks[0]:
                result = {"kind": kind, "hosts": hosts, "ranks": len(ranks), "seconds": elapsed}
                print(json.dumps(result), flush=True)
    dist.barrier(group=control)
    dist.destroy_process_group()


def _time_all_reduce(buffer: Any, group: Any) -> float:
    """Returns the seconds until the last rank has the sum: the median of a few repeats."""
    import torch
    import torch.distributed as dist

    def wait() -> None:
        if buffer.is_cuda:
            torch.cuda.synchronize()

    times: list[float] = []
    dist.all_reduce(buffer, group=group)  # not timed: it opens the connections
    wait()
    while len(times) < _REPEATS and sum(times) < _SECONDS_EACH:
        dist.barrier(group=group)
        wait()
        started = time.perf_counter()
        dist.all_reduce(buffer, group=group)
        wait()

        # The slowest rank's time, so that all ranks stop repeating together.
        elapsed = torch.tensor([time.perf_counter() - started], device=buffer.device)
        dist.all_reduce(elapsed, dist.ReduceOp.MAX, group=group)
        times.append(elapsed.item())
    return statistics.median(times)
