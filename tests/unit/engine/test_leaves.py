"""Which decoder layers ZeRO-3 gathers as a whole."""

from __future__ import annotations

import peft
import pytest
from deepspeed.utils import z3_leaf_module
from helpers import tiny_model

from cpo_ds.engine.leaves import mark_leaf_layers
from cpo_ds.model.logprobs import HeadTransform
from cpo_ds.model.policy import PolicyModel


def leaves(language_model) -> list[bool]:
    policy = PolicyModel(language_model, HeadTransform())
    mark_leaf_layers(policy)
    others = [m for m in policy.modules() if z3_leaf_module(m)]
    layers = policy.causal_lm.get_decoder().layers
    marked = [z3_leaf_module(layer) for layer in layers]
    assert len(others) == sum(marked)
    return marked


def with_lora(model, **settings):
    settings = {"target_modules": ["q_proj", "down_proj"]} | settings
    return peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **settings))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3"])
def test_all_layers_if_all_parameters_train(model_type):
    assert leaves(tiny_model(model_type, num_hidden_layers=3)) == [True, True, True]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3"])
def test_the_first_layer_that_trains_is_left_out_if_all_before_it_is_frozen(model_type):
    model = tiny_model(model_type, num_hidden_layers=3)
    assert leaves(with_lora(model)) == [False, True, True]


def test_an_adapter_that_begins_at_a_later_layer():
    model = tiny_model(num_hidden_layers=3)
    assert leaves(with_lora(model, layers_to_transform=[1, 2])) == [True, False, True]


def test_an_adapter_beside_trained_embeddings():
    model = tiny_model(num_hidden_layers=2)
    assert leaves(with_lora(model, modules_to_save=["embed_tokens"])) == [True, True]


def test_a_frozen_model():
    assert leaves(tiny_model().requires_grad_(False)) == [True, True]
