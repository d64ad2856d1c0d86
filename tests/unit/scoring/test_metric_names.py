"""Metrics by name, and the spans of errors that some give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.errors import UserError
from cpo_ds.scoring.metrics import parse_metrics
from cpo_ds.scoring.spans import closed_runs


@given(labels=st.lists(st.integers(0, 3)))
def test_spans_are_runs_of_errors_that_end(labels: list[int]) -> None:
    """The runs equal those of COMET's loop over tokens."""
    expected, open_since = [], None
    for index, label in enumerate(labels):
        if label and open_since is None:
            open_since = index
        if not label and open_since is not None:
            expected.append((open_since, index))
            open_since = None
    assert closed_runs(labels) == expected


# Metrics and checkpoints.


def test_metrics_by_name() -> None:
    metrics = parse_metrics(["kiwi", "x=/m/x.ckpt", "BLEU", "Unbabel/XCOMET-XL", "XCOMET-XXL"])
    assert [(m.name, m.model) for m in metrics] == [
        ("kiwi", "Unbabel/wmt23-cometkiwi-da-xxl"),
        ("x", "/m/x.ckpt"),
        ("BLEU", "bleu"),
        ("Unbabel/XCOMET-XL", "Unbabel/XCOMET-XL"),
        ("XCOMET-XXL", "Unbabel/XCOMET-XXL"),
    ]
    assert [m.is_lexical for m in metrics] == [False, False, True, False, False]
    for wrong in (["kiwi", "kiwi"], ["=x"], ["x="]):
        with pytest.raises(UserError, match="--metric"):
            parse_metrics(wrong)
