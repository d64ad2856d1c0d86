"""The verbs of `Engine` that need no ranks."""

from __future__ import annotations

import pytest
import torch

from cpo_ds.engine.engine import Engine


def test_evaluating_ends_in_training_mode_also_on_an_error():
    engine = Engine.__new__(Engine)
    engine._deepspeed = model = torch.nn.Linear(1, 1)
    with engine.evaluating():
        assert not model.training and not model(torch.ones(1)).requires_grad
    assert model.training and model(torch.ones(1)).requires_grad
    with pytest.raises(ValueError, match="of the caller"), engine.evaluating():
        raise ValueError("of the caller")
    assert model.training and model(torch.ones(1)).requires_grad
