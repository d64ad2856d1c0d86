"""Faults that only a GPU would have shown. With any of them the rig must fail.

Each is a function of a scratch folder, whose `with` block has the fault.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AttentionInterface

from cpo_ds.model import attention, attention_choice, load, policy, shared_prefix


@contextmanager
def name_with_flash(folder: Path) -> Iterator[None]:
    """A backend is registered under a name that transformers takes for a kernel of its hub."""

    def name(backend: str) -> str:
        return f"cpo_ds_{backend}"

    for backend, attend in attention.BACKENDS.items():
        AttentionInterface.register(name(backend), attention._registered(attend))
    with mock.patch.object(load, "registered_name", name):
        yield


@contextmanager
def folder_of_flash_attn_4(folder: Path) -> Iterator[None]:
    """No fault yet: a folder flash_attn without flash-attn 2, as flash-attn 4 alone leaves it."""
    (folder / "flash_attn" / "cute").mkdir(parents=True, exist_ok=True)
    hidden = {name: sys.modules.pop(name) for name in _flash_attn_modules()}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in _flash_attn_modules():
            del sys.modules[name]
        sys.modules.update(hidden)


@contextmanager
def package_looked_for(folder: Path) -> Iterator[None]:
    """Packages are looked for, not imported, and flash-attn 4 left such a folder."""

    def why_not(package: Any) -> str | None:
        try:
            return None if importlib.util.find_spec(package.module) else "is not installed"
        except ModuleNotFoundError:
            return "is not installed"

    looks = mock.patch.object(attention_choice, "why_not_importable", why_not)
    with folder_of_flash_attn_4(folder), looks:
        yield


def _flash_attn_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]


@contextmanager
def one_object_for_ends(folder: Path) -> Iterator[None]:
    """Ends of queries and keys are one object, which torch takes for equal lengths."""
    layout = shared_prefix.SharedPrefixLayout
    with mock.patch.object(layout, "key_ends", property(lambda self: self.query_ends)):
        yield


@contextmanager
def ends_of_64_bits(folder: Path) -> Iterator[None]:
    """Ends are int64, which the kernels do not read."""

    def ends(self: Any, lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *lengths], device=self.device).cumsum(0)

    with mock.patch.object(shared_prefix.SharedPrefixLayout, "_ends", ends):
        yield


@contextmanager
def _before_sums(change: Callable[[torch.Tensor, Any], torch.Tensor]) -> Iterator[None]:
    """Inside it `change` makes the log-probs that are summed, from log-probs and micro-batch."""
    plain = policy._sums_by_pair

    def changed(values: Any, batch: Any) -> Any:
        return plain([change(one, batch) for one in values], batch)

    with mock.patch.object(policy, "_sums_by_pair", changed):
        yield


def value_read(folder: Path) -> AbstractContextManager[None]:
    """The host reads a value while the pass runs."""

    def read(logps: torch.Tensor, batch: Any) -> torch.Tensor:
        logps.cpu()
        return logps

    return _before_sums(read)


def mask_of_values(folder: Path) -> AbstractContextManager[None]:
    """Values are picked by a mask, whose number of values the host must wait for."""

    def mask(logps: torch.Tensor, batch: Any) -> torch.Tensor:
        chosen = torch.nonzero(batch.score_in_chosen)
        assert chosen.dim() == 2
        return logps

    return _before_sums(mask)


def pageable_copy(folder: Path) -> AbstractContextManager[None]:
    """A mask is made on the host and copied from memory that is not pinned."""
    return _before_sums(lambda logps, batch: logps * torch.ones(len(logps)).to(logps.device))


def tensor_on_the_host(folder: Path) -> AbstractContextManager[None]:
    """A tensor of the micro-batch stays on the host."""
    return _before_sums(lambda logps, batch: logps * torch.ones(len(logps)))


Change = Callable[[Path], AbstractContextManager[None]]
FAULTS: dict[str, Change] = {
    function.__name__: function
    for function in (
        name_with_flash, package_looked_for, one_object_for_ends, ends_of_64_bits, value_read,
        mask_of_values, pageable_copy, tensor_on_the_host,
    )
}  # fmt: skip
CHANGES = FAULTS | {"folder_of_flash_attn_4": folder_of_flash_attn_4}
