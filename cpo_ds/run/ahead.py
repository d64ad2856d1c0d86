"""Plans, packs and copies the next step's batches while a GPU computes the step before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from cpo_ds.schema import PackedBatch, StepTotals

Key = TypeVar("Key")
Value = TypeVar("Value")
Planned = tuple[list[PackedBatch], StepTotals]


@contextmanager
def planned_steps_on(
    device: torch.device, plan: Callable[[int], Planned], steps: Iterable[int]
) -> Iterator[Iterator[Planned]]:
    """Yields an iterator over the plans of `steps`, with their batches on `device`.

    On a GPU a thread makes each plan one step ahead, and copies its batches on a stream of its own.
    On a CPU plans are made when they are asked for: the cores have no time to spare. `plan` is a
    pure function, so that both ways give the same.
    """
    if device.type != "cuda":
        yield map(plan, steps)
        return
    stream = torch.cuda.Stream(device)
    with made_ahead(lambda step: _send(*plan(step), device, stream), steps) as sent:
        yield map(_receive, sent)


@contextmanager
def made_ahead(make: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[Iterator[Value]]:
    """Yields an iterator over `make(key)`, each made in a thread while the one before is in use.

    An error of `make` is raised where its value is asked for. The thread ends with the `with`
    block, whatever ends it.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        yield _in_order(pool, make, keys)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, make: Callable[[Key], Value], keys: Iterable[Key]
) -> Iterator[Value]:
    begun: Future[Value] | None = None
    for key in keys:
        following = pool.submit(make, key)
        if begun is not None:
            yield begun.result()
        begun = following
    if begun is not None:
        yield begun.result()


@dataclass(frozen=True)
class _Sent:
    """A step's batches on their way to a GPU; `copied` tells when they are there."""

    batches: list[PackedBatch]
    totals: StepTotals
    copied: torch.cuda.Event


def _send(
    batches: list[PackedBatch],
    totals: StepTotals,
    device: torch.device,
    stream: torch.cuda.Stream,
) -> _Sent:
    """Starts to copy batches to a GPU, on `stream`."""
    with torch.cuda.stream(stream):  # also makes the stream's GPU this thread's
        on_gpu = [batch.to(device) for batch in batches]
        copied = torch.cuda.Event()
        copied.record(stream)
    return _Sent(on_gpu, totals, copied)


def _receive(sent: _Sent) -> Planned:
    """The batches for the current stream, which waits for the copies; the host does not."""
    current = torch.cuda.current_stream()
    current.wait_event(sent.copied)
    for batch in sent.batches:
        for tensor in batch.tensors().values():
            # Its memory belongs to the stream of the copies, and may serve the next one as soon as
            # the host lets go of it. This keeps it until the current stream is done with it, too.
            tensor.record_stream(current)
    return sent.batches, sent.totals
