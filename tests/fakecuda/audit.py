"""Counts the operations of a pass over fake CUDA tensors: kernels, bytes, waits and copies.

It sees each operation as torch dispatches it, those inside custom autograd functions included, so
an operation counts as one kernel if the CUDA build has one kernel for it. An operation registered
by `torch.library` counts as one kernel too.
"""

from __future__ import annotations

import functools
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that launch no kernel: they make views, or memory with whatever it holds.
_NO_KERNEL = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "is_pinned", "is_same_size", "lift_fresh", "narrow",
    "new_empty", "new_empty_strided", "permute", "record_stream", "reshape", "resize_", "select",
    "set_", "slice", "split", "split_with_sizes", "squeeze", "sym_numel", "sym_size",
    "sym_storage_offset", "sym_stride", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
    "view_as",
}  # fmt: skip
# Operations whose result the host needs, a value or a shape, so it waits for the device.
_WAITS = {
    "_local_scalar_dense", "_unique2", "equal", "is_nonzero", "item", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_WRITES_ONLY = {"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addmm_", "baddbmm_"}
# Floating-point operations for each byte above which a matrix product is limited by arithmetic. A
# H200 has 170 to 210; products with weights have over 1,000, those with LoRA's matrices about 16.
_INTENSE = 100
_SKIPPED_FOLDERS = ("/torch/", "/fakecuda/")


@dataclass
class Work:
    """Counts of kernels. `bytes` are those of all kernels but the large matrix products."""

    kernels: int = 0
    bytes: int = 0
    product_flops: int = 0  # of large matrix products
    product_bytes: int = 0

    def __sub__(self, other: Work) -> Work:
        return self.plus(other, -1)

    def plus(self, other: Work, times: int = 1) -> Work:
        """The sum with `times` the other."""
        theirs = vars(other)
        return Work(**{name: value + times * theirs[name] for name, value in vars(self).items()})


@dataclass
class Copy:
    """A copy from the host to the device."""

    shape: tuple[int, ...]
    waits: bool  # it is not asynchronous, or from memory that is not pinned
    site: str


@dataclass(frozen=True)
class Kernel:
    """The kind of a kernel: its operation, stage of the pass, and largest tensor."""

    stage: str
    name: str
    largest: str


class Audit(TorchDispatchMode):
    """Everything that is dispatched inside `with Audit() as audit:`, by the `stage` it is in.

    `problems` lists waits of the host, mixed devices and copies to the host; `copies` those to the
    device. Both name the line that caused them.
    """

    active: Audit | None = None  # the one that counts now

    def __init__(self) -> None:
        super().__init__()
        self.stage = "start"
        self.work: dict[str, Work] = {}
        self.kinds: dict[Kernel, Work] = {}
        self.problems: Counter[str] = Counter()
        self.copies: list[Copy] = []
        self._pinned: list[torch.Tensor] = []
        self._inside_kernel = False

    def __enter__(self) -> Any:
        Audit.active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Audit.active = None
        super().__exit__(*error)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operation and counts it."""
        kwargs = kwargs or {}
        if self._inside_kernel:
            return func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name == "_pin_memory":  # the mode of fake tensors does not know it
            self._pinned.append(torch.empty_like(args[0]))
            return self._pinned[-1]
        result = func(*args, **kwargs)
        inputs = _tensors((args, {k: v for k, v in kwargs.items() if k != "out"}))
        outputs = _tensors(result)
        asynchronous = bool(kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
        self._check(name, inputs, outputs, asynchronous)
        if name not in _NO_KERNEL and any(tensor.is_cuda for tensor in outputs):
            self._count(name, inputs, outputs)
        return result

    def _check(
        self,
        name: str,
        inputs: list[torch.Tensor],
        outputs: list[torch.Tensor],
        asynchronous: bool,
    ) -> None:
        """Notes whether an operation waits, copies, or mixes devices."""
        # A tensor with one number may be on the host: it is an argument of the kernel.
        devices = {tensor.device.type for tensor in inputs if tensor.dim() > 0}
        targets = {tensor.device.type for tensor in outputs}
        on_device = any(tensor.is_cuda for tensor in inputs)
        if name in ("copy_", "_to_copy"):
            source, target = inputs[-1], outputs[0]
            if source.is_cuda and not target.is_cuda:
                self._note("a copy to the host")
            elif target.is_cuda and not source.is_cuda:
                pinned = any(source is tensor for tensor in self._pinned)
                waits = not (pinned and asynchronous)
                self.copies.append(Copy(tuple(source.shape), waits, _site()))
        elif name in _WAITS and on_device:
            self._note(f"{name} makes the host wait")
        elif name in _INDEXING and any(tensor.dtype == torch.bool for tensor in inputs[1:]):
            self._note(f"{name} by a mask makes the host wait")
        elif len(devices) > 1:
            self._note(f"{name} of tensors on {' and '.join(sorted(devices))}")
        elif devices == {"cuda"} and "cpu" in targets and name not in _NO_KERNEL:
            self._note(f"{name} of CUDA tensors gives one on the CPU")

    def _note(self, problem: str) -> None:
        self.problems[f"{problem}, in {self.stage}, at {_site()}"] += 1

    def _count(self, name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        read = inputs[1:] if name in _WRITES_ONLY else inputs
        moved = sum(map(touched_bytes, [*read, *outputs]))
        flops = _product_flops(inputs) if name in _PRODUCTS else 0
        intense = flops > _INTENSE * moved
        work = Work(1, 0 if intense else moved, flops * intense, moved * intense)
        largest = max([*inputs, *outputs], key=touched_bytes)
        kind = Kernel(self.stage, name, f"{tuple(largest.shape)} {str(largest.dtype)[6:]}")
        self.work[self.stage] = self.work.get(self.stage, Work()).plus(work)
        self.kinds[kind] = self.kinds.get(kind, Work()).plus(work)

    @property
    def total(self) -> Work:
        """The work of all stages."""
        return functools.reduce(Work.plus, self.work.values(), Work())


def as_one_kernel(formula: Callable[..., Any]) -> Callable[..., Any]:
    """The formula, counted as the one kernel that torch compiles it into."""

    def counted(*arguments: Any) -> Any:
        audit = Audit.active
        if audit is None:
            return formula(*arguments)
        audit._inside_kernel = True
        try:
            result = formula(*arguments)
        finally:
            audit._inside_kernel = False
        audit._count(formula.__name__, _tensors(arguments), _tensors(result))
        return result

    return counted


@contextmanager
def one_kernel_operations() -> Iterator[None]:
    """Inside it, operations with a CUDA kernel of their own are dispatched whole.

    Without that kernel, as in the CPU build, torch would take them apart into several.
    """
    library = torch.library.Library("aten", "IMPL")
    library.impl("silu_backward", _never_called, "CUDA")
    try:
        yield
    finally:
        library._destroy()


def _never_called(*args: Any) -> Any:
    raise AssertionError("tensors without data reach no kernel")


def touched_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor in memory; a dimension that is broadcast counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride != 0) * tensor.element_size()


def _product_flops(inputs: list[torch.Tensor]) -> int:
    left, right = inputs[-2:]
    return 2 * left.numel() * right.shape[-1]


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _site() -> str:
    """The innermost line of the stack that is neither torch's nor of this folder."""
    for frame in reversed(traceback.extract_stack()):
        if not any(folder in frame.filename for folder in _SKIPPED_FOLDERS):
            return f"{Path(frame.filename).name}:{frame.lineno} ({frame.name})"
    return "the backward pass"
