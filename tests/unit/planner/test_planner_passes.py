"""Memory of forward and backward passes, measured on models without data."""

import functools
from itertools import pairwise
from unittest import mock

import pytest
import torch
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from cpo_ds.model.load import SUPPORTED_MODEL_TYPES
from cpo_ds.model.recomputation import recompute_layers
from cpo_ds.planner import activations
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.passes import PassMemory, PassModel
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


def recipe(folder, layers, **values):
    model = {"name_or_path": str(folder), "gradient_checkpointing": layers, "head_chunk_tokens": 32}
    return parse_config({"model": model, "data": {"format": "sample"}} | values, "test")


META = torch.device("meta")


def one_pass(outline, config, pairs, layers=0, device=META):
    """Memory of the whole model's pass; on the CPU inside a FakeTensorMode."""
    policy = activations._policy(outline, config, device, recomputes=False, flash=True)
    recompute_layers(policy.causal_lm, layers)
    return activations._run(policy, activations._batch(pairs, activations.TYPICAL_PAIR).to(device))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "phi3", "cohere"])
def test_the_meta_device_holds_as_much_as_tensors_of_a_cpu(model_type, tmp_path):
    tiny_config(model_type).save_pretrained(tmp_path)
    lora = {"rank": 4, "target_modules": ["down_proj"]}
    config, outlines = recipe(tmp_path, 1, lora=lora).with_model(dtype="bfloat16"), Outlines(None)
    on_meta = one_pass(outlines.build(config), config, 3, 1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_cpu = one_pass(outlines.build(config), config, 3, 1, torch.device("cpu"))
    assert on_meta == on_cpu


@pytest.mark.parametrize(
    "lora", [None, {"rank": 4, "target_modules": ["down_proj"], "dropout": 0.0}]
)
def test_any_number_of_recomputed_layers_is_planned_exactly(lora, tmp_path):
    """Planned from models of two depths, and measured in the whole model."""
    tiny_config("llama", num_hidden_layers=6).save_pretrained(tmp_path)
    outlines = Outlines(None)
    pairs, tokens = 4, 4 * sum(activations.TYPICAL_PAIR)
    for layers in (0, 1, 4, 5, 6):
        config = recipe(tmp_path, layers, lora=lora)
        planned = outlines.passes(config, stage=0).at(tokens)
        measured = one_pass(outlines.build(config), config, pairs, layers)
        assert (planned.held, planned.head) == pytest.approx((measured.held, measured.head))
        assert max(planned.body, planned.recomputed) == pytest.approx(measured.body)


def test_each_further_recomputed_layer_saves_as_much(tmp_path):
    tiny_config("llama", num_hidden_layers=6).save_pretrained(tmp_path)
    outlines = Outlines(None)
    held = [outlines.passes(recipe(tmp_path, layers), stage=0).at(1000).held for layers in range(7)]
    saved = [more - less for more, less in pairwise(held)]
    assert saved == pytest.approx([saved[0]] * 6) and saved[0] > 0


@pytest.mark.parametrize(("dtype", "gpu"), [("float32", True), ("float32", False),
                                            ("bfloat16", False)])  # fmt: skip
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_attention_without_a_kernel_keeps_more(model_type, dtype, gpu, tmp_path):
    """gemma2 caps its scores, which torch's fused attention cannot."""
    tiny_config(model_type).save_pretrained(tmp_path)
    config = recipe(tmp_path, 0).with_model(dtype=dtype)
    with mock.patch.object(activations, "registered_name", lambda name: activations._FLASH):
        least = Outlines(None).passes(config, stage=0, gpu=gpu).at(1000).held
    held = Outlines(None).passes(config, stage=0, gpu=gpu).at(1000).held
    assert held > least if (model_type, dtype) != ("llama", "float32") else held > 0
