"""One rank of a training run during which the link between hosts changes.

`link_speed.py` launches it:
deepspeed --hostfile HOSTFILE --no_local_rank --module jobs.link_worker TASK.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import psutil
import torch
from measures.probe import Probe
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.job import Job

HEADER_BYTES = 66  # of each frame: Ethernet 14, IPv4 20, TCP 20 and its timestamps 12
COUNTED_STEPS = 3  # run first; collectives are counted in the last of them
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Traffic:
    """The bytes and frames that this host's network adapter has passed so far."""

    bytes_sent: int
    bytes_received: int
    frames_sent: int
    frames_received: int

    def since(self, before: Traffic) -> dict[str, int]:
        """Bytes that passed, headers of the network left out, and frames."""
        now = zip(astuple(self), astuple(before), strict=True)
        sent, received, frames_sent, frames_received = (later - sooner for later, sooner in now)
        return {
            "sent": sent - HEADER_BYTES * frames_sent,
            "received": received - HEADER_BYTES * frames_received,
            "frames": frames_sent + frames_received,
        }


def traffic(interface: str) -> Traffic:
    """The counters of an interface of this process's network namespace."""
    seen = psutil.net_io_counters(pernic=True, nowrap=False)[interface]
    return Traffic(seen.bytes_sent, seen.bytes_recv, seen.packets_sent, seen.packets_recv)


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives of this thread by kind and by whether their group spans hosts."""

    def __init__(self, ranks_per_host: int) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, int]] = {}
        self._ranks_per_host = ranks_per_host

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "c10d":
            hosts = {rank // self._ranks_per_host for rank in _group_of(args)}
            span = "between hosts" if len(hosts) > 1 else "inside a host"
            name = func._schema.name.removeprefix("c10d::").strip("_")
            entry = self.seen.setdefault(f"{name}, {span}", {"count": 0, "bytes": 0})
            entry["count"] += 1
            entry["bytes"] += max(map(_size, args))
        return func(*args, **(kwargs or {}))


def _group_of(args: tuple[Any, ...]) -> list[int]:
    """The ranks of the process group among a collective's arguments; none without one."""
    for value in args:
        if isinstance(value, torch.ScriptObject):
            try:
                group = torch.distributed.ProcessGroup.unbox(value)
            except RuntimeError:  # the kind of reduction is such an object too
                continue
            return torch.distributed.get_process_group_ranks(group)
    return []


def _size(value: Any) -> int:
    """Bytes of all tensors in an argument."""
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


class LinkProbe(Probe):
    """A `Probe` that also counts each step's traffic and has the link changed after each phase."""

    def __init__(self, phases: int, steps_each: int, change_link: Callable[[int], None]) -> None:
        super().__init__(1, COUNTED_STEPS + phases * steps_each - 1)
        self._phases, self._steps_each, self._change_link = phases, steps_each, change_link
        self._marks: list[tuple[float, Traffic]] = []
        self._counter = CollectiveCounter(int(os.environ["LOCAL_WORLD_SIZE"]))

    def step_is_done(self) -> bool:
        """Marks the end of a step, as `Probe` does; between two phases it waits for the link."""
        is_last = super().step_is_done()
        self._marks.append((time.perf_counter(), traffic(os.environ["GLOO_SOCKET_IFNAME"])))
        done = len(self._marks)
        if done == COUNTED_STEPS - 1:
            self._counter.__enter__()
        elif done == COUNTED_STEPS:
            self._counter.__exit__(None, None, None)
        phase, rest = divmod(done - COUNTED_STEPS, self._steps_each)
        if done >= COUNTED_STEPS and rest == 0 and not is_last:
            self._change_link(phase)
            torch.distributed.barrier()
        return is_last

    def result(self) -> dict[str, Any]:
        """Adds `phases` to `Probe`'s results: seconds and traffic of each phase's later steps."""
        phases = []
        for phase in range(self._phases):
            first = COUNTED_STEPS + phase * self._steps_each
            marks = self._marks[first : first + self._steps_each]
            steps = [
                {"seconds": round(end - start, 4)} | after.since(before)
                for (start, before), (end, after) in pairwise(marks)
            ]
            phases.append(steps)
        return super().result() | {"phases": phases, "collectives": self._counter.seen}


def main(task_file: Path) -> int:
    """Trains as the task file says; rank 0 writes the measurements beside it."""
    from cpo_ds.ranks.place import place
    from cpo_ds.ranks.quiet import silence_libraries

    task = json.loads(task_file.read_text(encoding="utf-8"))
    rank_place = place()
    os.environ.update(rank_place.variables())
    silence_libraries()
    job = Job(**task["job"])
    torch.set_num_threads(job.threads)

    def change_link(phase: int) -> None:
        if rank_place.rank == 0:
            wait_for_link(task_file.parent, phase)

    from jobs.train_ours import run_ours

    probe = LinkProbe(task["phases"], task["steps_each"], change_link)
    with tempfile.TemporaryDirectory() as folder:
        measured = run_ours(job, probe, folder)
    if rank_place.rank == 0:
        result = task_file.with_name("result.json")
        result.write_text(json.dumps(measured), encoding="utf-8")
    return 0


def wait_for_link(folder: Path, phase: int) -> None:
    """Asks for the link of a phase and waits until the link is set."""
    (folder / f"wanted-{phase}").touch()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not (folder / f"set-{phase}").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody changed the link for phase {phase}")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
