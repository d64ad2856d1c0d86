"""Splits the time of a profiled training step into parts, and into passes.

On a GPU an operation's time is that of the kernels that it launched. On a CPU it is its own time,
without the operations inside it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from measures.step_ranges import ATTENTION, HEAD, MATRIX, OPTIMIZER, OTHER, PREFIX

FORWARD, RECOMPUTED, BACKWARD, UPDATE = "forward", "recomputation", "backward", "update"
PASSES = (FORWARD, RECOMPUTED, BACKWARD, UPDATE)
IDLE = "launches and idle"

_PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm",
)  # fmt: skip
# Parts to which products inside them belong. An adapter's are joined with those of its layer.
_KEEP_PRODUCTS = (ATTENTION, HEAD, OPTIMIZER)
_NODE = "autograd::engine::evaluate_function"
_NAME_LENGTH = 120

Key = tuple[int, int]  # thread and sequence number of the forward operation of a backward node


def split_step(events: Iterable[Any], step_seconds: float, *, on_gpu: bool) -> dict[str, Any]:
    """Seconds by part and by pass, the launches, and the kernels that take longest.

    `step_seconds` is the step's time on the clock: what no operation accounts for is `IDLE`.
    """
    events = [event for event in events if not str(event.device_type).endswith("CUDA")]
    parts_forward = _parts_of_forward(events)
    # Each operation's own time goes to the part and the pass that it belongs to.
    parts: defaultdict[str, float] = defaultdict(float)
    passes: defaultdict[str, float] = defaultdict(float)
    kernels: defaultdict[str, float] = defaultdict(float)
    launches = 0
    for event in events:
        own = list(_own_times(event, on_gpu=on_gpu))
        if not own:
            continue
        part, in_pass = _place(event, parts_forward)
        for name, seconds in own:
            parts[part] += seconds
            passes[in_pass] += seconds
            kernels[name[:_NAME_LENGTH]] += seconds
            launches += 1
    # The rest of the step: nothing ran, or nothing but Python.
    busy = sum(parts.values())
    parts[IDLE] = max(0.0, step_seconds - busy)
    return {
        "parts_seconds": _rounded(parts),
        "passes_seconds": _rounded(passes),
        "longest_seconds": _rounded(dict(Counter(kernels).most_common(15))),
        "busy_seconds": round(busy, 6),
        "launches": launches,
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in seconds.items()}


def _own_times(event: Any, *, on_gpu: bool) -> Iterator[tuple[str, float]]:
    """Names and seconds of the kernels of an event itself; on a CPU the event is the kernel."""
    if on_gpu:
        for kernel in event.kernels:
            yield kernel.name, kernel.duration / 1e6
    elif event.name.startswith("aten::") and event.self_cpu_time_total > 0:
        yield event.name, event.self_cpu_time_total / 1e6


def _ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _range_of(event: Any) -> str | None:
    return event.name[len(PREFIX) :] if event.name.startswith(PREFIX) else None


def _parts_of_forward(events: list[Any]) -> dict[Key, str]:
    """The part of each forward operation, by thread and sequence number.

    An operation notes the number that the next node of the graph will get, so the last one that
    notes a number is the one that made the node.
    """
    parts: dict[Key, str] = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.sequence_nr < 0 or event.fwd_thread:
            continue
        part = next((part for a in _ancestors(event) if (part := _range_of(a))), None)
        key = (event.thread, event.sequence_nr)
        if part is not None:
            parts[key] = part
        else:
            parts.pop(key, None)
    return parts


def _place(event: Any, parts_forward: dict[Key, str]) -> tuple[str, str]:
    """The part and the pass of an operation: by the innermost range or backward node around it."""
    part, in_pass = OTHER, ""
    for ancestor in _ancestors(event):
        if ancestor.name.startswith(_NODE):
            if not in_pass:
                key = (ancestor.fwd_thread, ancestor.sequence_nr)
                part, in_pass = parts_forward.get(key, OTHER), BACKWARD
            elif in_pass == FORWARD:
                in_pass = RECOMPUTED
            break
        if not in_pass and (inside := _range_of(ancestor)) is not None:
            part, in_pass = inside, FORWARD
    if part == OPTIMIZER:
        in_pass = UPDATE
    if event.name in _PRODUCTS and part not in _KEEP_PRODUCTS:
        part = MATRIX
    return part, in_pass or FORWARD
