"""The planner's estimates against memory that real runs hold."""

import pytest
from planner_check import Case, measure


@pytest.mark.parametrize("case", [Case("llama-25m", 3, "lora")])
def test_estimates_hold_for_a_real_run(case):
    line = measure(case)
    assert abs(line["states_error"]) < 0.02, line
    assert abs(line["total_error"]) < 0.10, line
