"""An export's log-probs are compared per token, and anything that is not a number differs."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import random_pairs

from cpo_ds.run.final_export import Sample, log_prob_difference

PAIRS = random_pairs(3)
SAMPLE = Sample(PAIRS, np.array([[-10.0, -20.0], [-30.0, -40.0], [-50.0, -60.0]], np.float32))


def test_equal_log_probs_are_no_difference() -> None:
    assert log_prob_difference(SAMPLE, SAMPLE.logps.copy(), 0.0) is None


def test_a_difference_counts_per_token() -> None:
    scored = PAIRS[1].num_scored[1]
    loaded = SAMPLE.logps.copy()
    loaded[1, 1] += 0.5 * scored
    assert log_prob_difference(SAMPLE, loaded, 0.51) is None
    text = log_prob_difference(SAMPLE, loaded, 0.49)
    assert text is not None
    assert "rejected text of random" in text and "was -40.00000" in text
    assert "0.5 per token (allowed: 0.49)" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_differs(value: float) -> None:
    loaded = SAMPLE.logps.copy()
    loaded[2, 0] = value
    text = log_prob_difference(SAMPLE, loaded, 1e9)
    assert text is not None and "chosen" in text
