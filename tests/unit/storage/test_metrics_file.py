"""A run's metrics, read from a file that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ds.errors import UserError
from cpo_ds.storage.metrics_file import cut_back_metrics, read_metrics

LINE = '{"step": 1, "loss": 2.0}'


def test_half_a_line_at_the_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{LINE}\n{{"step": 2, "lo', encoding="utf-8")
    assert read_metrics(tmp_path) == ([{"step": 1, "loss": 2.0}], [])


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": "x"}', "{]", "null", "[" * 100_000, "\0\0"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f"{LINE}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not a line of metrics"):
        read_metrics(tmp_path)
    # A run that goes on drops it.
    cut_back_metrics(tmp_path, 1)
    assert read_metrics(tmp_path) == ([{"step": 1, "loss": 2.0}], [])
