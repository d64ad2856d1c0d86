"""Splits the peak of a training step into parts: weights, gradients, optimizer, activations, head.

Model states (weights, gradients, optimizer, reference) are counted by the tensors that hold them.
Activations and head are counted by how the memory in use moves within a step. All sizes in GiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from measures.probe import GIB, memory_now, memory_peak, reset_peak

STATES = ("weights", "gradients", "optimizer", "reference")
PARTS = (*STATES, "activations", "head", "libraries", "other")


@dataclass
class Levels:
    """Memory in use during one micro-batch."""

    start: float  # before its forward pass
    head_begin: float = 0.0  # when the scoring head is entered
    gradients_then: float = 0.0  # gradients of earlier micro-batches, a part of `start`
    before_head: float = 0.0  # peaks: of the forward pass up to the head,
    in_head: float = 0.0  # of the head's forward and backward passes,
    after_head: float = 0.0  # and of the body's backward pass

    @property
    def peak(self) -> float:
        """The largest of the three levels."""
        return max(self.before_head, self.in_head, self.after_head)


class HeadWatch:
    """Reads memory when the scoring head begins, all activations held, and when it ends."""

    def __init__(self, policy: Any) -> None:
        self.seen: list[Levels] = []
        self._policy = policy
        policy.scoring_head.register_forward_pre_hook(self._enter)

    def begin(self) -> None:
        """Marks the begin of a micro-batch."""
        reset_peak()
        self.seen.append(Levels(start=memory_now()))

    def end(self) -> None:
        """Marks the end of a micro-batch's backward pass."""
        self.seen[-1].after_head = memory_peak()

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():  # a reference's pass
            return
        levels = self.seen[-1]
        levels.before_head, levels.head_begin = memory_peak(), memory_now()
        levels.gradients_then = size_gib(gradients_of(self._policy))
        reset_peak()
        inputs[0].register_hook(self._leave)

    def _leave(self, gradient: torch.Tensor) -> None:
        self.seen[-1].in_head = memory_peak()
        reset_peak()


def parts_of_peak(
    peak: float, libraries: float, held: dict[str, float], levels: Levels
) -> dict[str, float]:
    """`PARTS` -> GiB at the moment of the peak; they add up to `peak`.

    `held` are the model states before the update, gradients whole. At a peak inside the head the
    gradients are those of earlier micro-batches, since this one has none yet.
    """
    parts = dict(held)
    if levels.in_head >= levels.peak:
        parts["gradients"] = min(held["gradients"], levels.gradients_then)
        parts["activations"] = levels.head_begin - levels.start
        parts["head"] = levels.in_head - levels.head_begin
    else:
        new_gradients = held["gradients"] - levels.gradients_then
        parts["activations"] = max(0.0, levels.peak - levels.start - new_gradients)
        parts["head"] = 0.0
    parts["libraries"] = libraries
    parts["other"] = peak - sum(parts.values())
    return parts


def plain_parts(peak: float, libraries: float, held: dict[str, float]) -> dict[str, float]:
    """Returns {column: GiB} of a trainer whose steps are not looked into.

    Activations, head and all else are one part then, `activations_and_head_gib`.
    """
    parts = held | {"libraries": libraries}
    rest = peak - sum(parts.values())
    sizes = parts | {"activations_and_head": rest}
    return {f"{name}_gib": round(value, 4) for name, value in sizes.items()}


def gradients_of(module: nn.Module) -> list[torch.Tensor]:
    """Gradients that hang on a module's parameters."""
    return [p.grad for p in module.parameters() if p.grad is not None]


def weights_of(module: nn.Module | None) -> list[torch.Tensor]:
    """A module's parameters and buffers; under ZeRO-3 this rank's shards."""
    if module is None:
        return []
    held = [p.data for p in module.parameters()] + list(module.buffers())
    return held + [p.ds_tensor for p in module.parameters() if hasattr(p, "ds_tensor")]


def size_gib(tensors: Iterable[torch.Tensor], seen: set[tuple[str, int]] | None = None) -> float:
    """Memory of the tensors' storages in GiB, each counted once, those in `seen` not at all.

    Adds the counted storages to `seen`. On a GPU only the tensors on it count, as in its peak.
    """
    seen = set() if seen is None else seen
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage.data_ptr())
        if key not in seen and tensor.is_cuda == torch.cuda.is_available():
            seen.add(key)
            total += storage.nbytes()
    return total / GIB


def states_gib(policy: nn.Module, reference: nn.Module | None, optimizer: Any) -> dict[str, float]:
    """Returns {state: GiB} for `STATES`; each storage counts once, weights first.

    `optimizer` is torch's or one of DeepSpeed's. Of DeepSpeed's buffers, those with gradients in
    their name are gradients and views of weights are weights. Communication buckets are left out.
    All else, such as float32 copies of the weights, is the optimizer's.
    """
    held = list(_tensors_within(optimizer, set()))
    seen: set[tuple[str, int]] = set()
    return {
        "weights": size_gib(weights_of(policy), seen),
        "reference": size_gib(weights_of(reference), seen),
        "gradients": size_gib([*gradients_of(policy), *(t for t, is_g in held if is_g)], seen),
        "optimizer": size_gib((t for t, _ in held), seen),
    }


def _tensors_within(
    value: Any, visited: set[int], is_gradient: bool = False
) -> Iterator[tuple[torch.Tensor, bool]]:
    """Yields each tensor inside an optimizer, and whether a name that leads to it says gradient."""
    if isinstance(value, torch.Tensor):
        yield value.data, is_gradient
        if value.is_leaf and value.grad is not None:
            yield value.grad, True
        return
    if id(value) in visited or isinstance(value, nn.Module):
        return
    visited.add(id(value))
    if isinstance(value, dict):
        named = list(value.items())
    elif isinstance(value, (list, tuple, set)):
        named = [("", item) for item in value]
    elif isinstance(value, torch.optim.Optimizer) or _is_deepspeeds(value):
        named = list(getattr(value, "__dict__", {}).items())
    else:
        return
    for name, item in named:
        if isinstance(name, str) and "ipg" in name:
            continue  # buckets for communication, touched as far as they are used
        marked = isinstance(name, str) and "grad" in name
        yield from _tensors_within(item, visited, is_gradient or marked)


def _is_deepspeeds(value: Any) -> bool:
    module = type(value).__module__ or ""
    return module.startswith("deepspeed.") and (".zero" in module or "optimizer" in module)
