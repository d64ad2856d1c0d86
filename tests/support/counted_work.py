"""Counts the work that a call reports as its sign of life."""

from __future__ import annotations

from collections.abc import Callable

from cpo_ds.ranks.liveness import work_done


def counted(work: Callable[[], object]) -> int:
    """The pieces of work that a call has counted."""
    before = work_done()
    work()
    return work_done() - before
