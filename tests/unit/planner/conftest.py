"""A fixture for tests that plan the same models several times."""

from unittest import mock

import pytest

from cpo_ds.planner import activations, outlines


@pytest.fixture(scope="module")
def passes_measured_once():
    """Measures the passes of equal models once, since a measurement takes a second."""
    known = {}

    def measure_passes(model, config, **options):
        weights = [(p.dtype, p.requires_grad) for p in model.parameters()]
        same = {"name_or_path", "gradient_checkpointing"}
        key = str((model, weights, config.model.model_dump(exclude=same), options))
        if key not in known:
            known[key] = activations.measure_passes(model, config, **options)
        return known[key]

    with mock.patch.object(outlines, "measure_passes", measure_passes):
        yield
