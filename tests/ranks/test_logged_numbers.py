"""The numbers of a logged step: sums over ranks and the largest memory, in one exchange."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import on_ranks
from workers import exchanges


@pytest.mark.parametrize("ranks", [1, 3])
def test_sums_and_the_largest_value_travel_together(tmp_path: Path, ranks: int) -> None:
    for done in on_ranks(exchanges.exchange_numbers, [str(tmp_path)], ranks=ranks):
        assert done.code == 0, done.output
    records = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    for record in records:
        assert record == records[0]
        assert record["exchanges"] == 1
        (sums, largest), (expected, expected_largest) = record["together"], record["one by one"]
        assert sums == pytest.approx(expected, rel=1e-15) and largest == expected_largest
