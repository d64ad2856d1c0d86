"""The margins of held-out pairs: the first and the latest evaluation stay."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cpo_ds.storage.held_out_file import (
    MOST_PAIRS,
    PAIRS_FILE,
    PairMargin,
    kept_indices,
    read_margins,
    write_margins,
)


def margins(step: int, *values: float) -> list[PairMargin]:
    return [
        PairMargin(step, f"pairs.jsonl:{number}", "en-de", value)
        for number, value in enumerate(values, start=1)
    ]


def test_the_first_and_the_latest_evaluation_stay(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        write_margins(tmp_path, margins(step, step / 10, -1.0))
    assert read_margins(tmp_path) == [*margins(0, 0.0, -1.0), *margins(20, 2.0, -1.0)]


def test_a_step_that_is_evaluated_again_is_replaced(tmp_path: Path) -> None:
    for step, value in ((0, 1.0), (20, 2.0), (10, 3.0), (10, 4.0)):
        write_margins(tmp_path, margins(step, value))
    assert read_margins(tmp_path) == [*margins(0, 1.0), *margins(10, 4.0)]


def test_a_run_that_begins_anew_leaves_nothing_of_another(tmp_path: Path) -> None:
    write_margins(tmp_path, margins(0, 1.0, 2.0))
    write_margins(tmp_path, margins(5, 1.0, 2.0))
    write_margins(tmp_path, margins(0, 7.0))
    assert read_margins(tmp_path) == margins(0, 7.0)


def test_numbers_that_are_not_finite_are_null_and_left_out(tmp_path: Path) -> None:
    write_margins(tmp_path, margins(0, math.nan, 2.0))
    assert json.loads((tmp_path / PAIRS_FILE).open().readline())["reward_margin"] is None
    assert read_margins(tmp_path) == margins(0, math.nan, 2.0)[1:]


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "3", '{"step": 0}', '{"step": "0"}', "null", "[" * 100_000, "\x00"]
)
def test_damaged_lines_are_left_out(tmp_path: Path, line: str) -> None:
    write_margins(tmp_path, margins(0, 1.0))
    with (tmp_path / PAIRS_FILE).open("a") as file:
        file.write(line + "\n")
    assert read_margins(tmp_path) == margins(0, 1.0)


@pytest.mark.parametrize("count", [0, 1, MOST_PAIRS, MOST_PAIRS + 1, 25_000, 1_000_000])
def test_at_most_so_many_pairs_are_kept(count: int) -> None:
    kept = kept_indices(count)
    assert len(kept) <= MOST_PAIRS and (count > MOST_PAIRS or len(kept) == count)
    assert len(kept) > MOST_PAIRS / 2 or len(kept) == count
