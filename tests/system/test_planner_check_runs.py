"""The planner's estimates against memory that real runs hold."""

import pytest
from planner_check import Case, measure


@pytest.mark.parametrize(
    "case",
    [
        Case("llama-25m", 3, "lora"),
        Case("llama-25m", 2, pairs=2, rejected=8),
        Case("tiny", 1, ranks=2, dtype="bfloat16", states="bfloat16"),
        Case("tiny", 2, ranks=2, dtype="bfloat16", states="bfloat16"),
        Case("tiny", 3, ranks=2, dtype="bfloat16", states="bfloat16"),
    ],
)
def test_estimates_hold_for_a_real_run(case):
    line = measure(case)
    assert abs(line["states_error"]) < 0.02, line
    assert abs(line["total_error"]) < 0.10, line
