"""The options that the benchmarks' commands share."""

from __future__ import annotations

import argparse

import pytest
import torch
from jobs.command import add_dtype

from cpo_ds.model.precision import device_precision


def test_auto_is_the_precision_that_training_would_take() -> None:
    parser = argparse.ArgumentParser()
    add_dtype(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert parser.parse_args(["--dtype", "auto"]).dtype == device_precision(device).dtype
    assert parser.parse_args(["--dtype", "bfloat16"]).dtype == "bfloat16"
    assert parser.parse_args([]).dtype == "float32"
    with pytest.raises(SystemExit):
        parser.parse_args(["--dtype", "float64"])
