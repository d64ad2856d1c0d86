"""Errors that mean that a limit was met."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from cpo_ds.ranks.limits import limit_problem

_GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of "
    "which 1.20 GiB is free. If reserved but unallocated memory is large try setting X."
)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError(_GPU), "1.20 GiB is free. Lower batch.tokens_per_rank"),
        (MemoryError(), "this host has too little memory: Python could not get any"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "this host has too little memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.bin"), "ulimit -n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.bin"), "a.bin cannot be read or wri"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "look after the disk"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
    ],
)
def test_limits_are_told(error: Exception, text: str) -> None:
    assert text in (limit_problem(error) or "")


def test_memory_that_torch_asks_for() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert "this host has too little memory" in (limit_problem(caught.value) or "")


def test_an_error_while_another_one_is_handled() -> None:
    with pytest.raises(KeyError) as caught:
        try:
            raise MemoryError
        except MemoryError:
            {}["x"]
    assert limit_problem(caught.value)


@pytest.mark.parametrize(
    "error", [ValueError("too many"), OSError(errno.ENOENT, "gone"), RuntimeError("shape")]
)
def test_other_errors_stay(error: Exception) -> None:
    assert limit_problem(error) is None
