"""Lines on progress: the time that is left."""

from __future__ import annotations

import pytest

from cpo_ds.ranks.progress import Progress, duration


def test_progress_foretells_the_time_by_the_work_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    clock = iter([0.0, 4.0, 10.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = Progress("  {done} of {total} sentences", 20, 10, 100, said.append)  # of two ranks
    progress.advance(2, 40)
    progress.advance(1, 10)
    assert said == ["  6 of 20 sentences, 10 s left"]
    assert [duration(s) for s in (59.6, 75, 3700)] == ["1 min 0 s", "1 min 15 s", "1 h 1 min"]
