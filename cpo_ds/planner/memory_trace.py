"""Follows the memory that tensors hold while code runs: now, and at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTrace(TorchDispatchMode):
    """Counts each storage that an operation returns, from then until it is freed.

    Memory that an operation allocates and frees inside itself is not seen. `outside` are tensors
    that exist already: their storages do not count. Works on tensors without data too.
    """

    def __init__(self, outside: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._outside = {tensor.untyped_storage()._cdata for tensor in outside}
        self.current = 0  # bytes
        self.peak = 0
        self._live: dict[int, int] = {}  # id of a storage -> bytes

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return result

    def reset_peak(self) -> None:
        """Sets the peak to the memory held now."""
        self.peak = self.current

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        known = self._live.get(key)
        if known == size or key in self._outside:
            return
        if known is None:
            weakref.finalize(storage, self._forget, key)
        self._live[key] = size
        self.current += size - (known or 0)
        self.peak = max(self.peak, self.current)

    def _forget(self, key: int) -> None:
        self.current -= self._live.pop(key, 0)
