"""Memory of forward and backward passes, measured on models without data."""

import functools

import pytest
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.model.load import SUPPORTED_MODEL_TYPES
from cpo_ds.planner.activations import PassMemory, PassModel
from cpo_ds.planner.outlines import Outlines
from cpo_ds.recipe import parse_config


@given(st.integers(0, 10**7))
def test_the_largest_micro_batch_fills_the_room(tokens):
    model = PassModel(PassMemory(10, 20, 15), PassMemory(0, 1000, 70_000))
    assert model.most_tokens(model.at(tokens).peak) == tokens
    assert model.most_tokens(999) == 0


@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_every_family_runs_without_weights(model_type, tmp_path):
    tiny_config(model_type, num_hidden_layers=2).save_pretrained(tmp_path)
    values = {
        "model": {"name_or_path": str(tmp_path), "head_chunk_tokens": 32},
        "data": {"format": "sample"},
        "lora": {"rank": 4, "target_modules": ["down_proj"]},
    }
    passes = Outlines(None).passes(parse_config(values, "test"), stage=3)
    memory = passes.at(4096)
    assert 0 < memory.held < memory.peak


def test_checkpointing_needs_less_and_depth_is_extrapolated(tmp_path):
    @functools.cache
    def held(layers, checkpointing):
        tiny_config("llama", num_hidden_layers=layers).save_pretrained(tmp_path)
        model = {"name_or_path": str(tmp_path), "gradient_checkpointing": checkpointing}
        model |= {"head_chunk_tokens": 32}
        config = parse_config({"model": model, "data": {"format": "sample"}}, "test")
        return Outlines(None).passes(config, stage=0).at(10_000).held

    assert held(4, True) < held(4, False) / 4
    three, four, nine = (held(layers, False) for layers in (3, 4, 9))
    assert nine == pytest.approx(four + 5 * (four - three), rel=1e-6)
