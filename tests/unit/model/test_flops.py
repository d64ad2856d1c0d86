"""The work of a model: which weights are multiplied, and operations of a step by hand."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from helpers import tiny_config

from cpo_ds.model.flops import MatrixWeights, matrix_weights, recomputed_flops, step_flops
from cpo_ds.model.load import SUPPORTED_MODEL_TYPES

WEIGHTS = MatrixWeights(body=1000, head=40)


def test_step_flops_by_hand() -> None:
    """1,000 weights see 70 tokens, a head of 40 sees 25: 71,000 products, 4 or 6 each."""
    assert step_flops(WEIGHTS, 70, 25, trains_adapter=True) == 4 * 71_000
    assert step_flops(WEIGHTS, 70, 25, trains_adapter=False) == 6 * 71_000
    with_reference = step_flops(WEIGHTS, 70, 25, trains_adapter=False, runs_reference=True)
    assert with_reference == 8 * 71_000


@pytest.mark.parametrize(
    ("trains_adapter", "recomputed_share", "flops"),
    [(True, False, 0), (True, True, 140_000), (False, False, 2000), (False, True, 142_000)],
)
def test_recomputed_flops_by_hand(
    trains_adapter: bool, recomputed_share: float, flops: int
) -> None:
    """A second forward pass: 2 * 70 * 1,000 for the body, 2 * 25 * 40 for a trained head."""
    options = {"trains_adapter": trains_adapter, "recomputed_share": recomputed_share}
    assert recomputed_flops(WEIGHTS, 70, 25, **options) == flops


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("model_type", SUPPORTED_MODEL_TYPES)
def test_the_weights_of_linear_layers_count(model_type: str, is_tied: bool) -> None:
    config = tiny_config(model_type, tie_word_embeddings=is_tied)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    body = sum(layer.weight.numel() for layer in linear)
    assert matrix_weights(model) == MatrixWeights(body, head.weight.numel())


def test_an_adapter_adds_its_own_weights_but_not_those_of_embeddings() -> None:
    model = transformers.AutoModelForCausalLM.from_config(tiny_config("llama"))
    plain = matrix_weights(model)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    adapted = peft.get_peft_model(model, settings).get_base_model()
    lora = sum(
        parameter.numel()
        for name, parameter in adapted.named_parameters()
        if "q_proj.lora_" in name
    )
    assert lora > 0
    assert matrix_weights(adapted) == MatrixWeights(plain.body + lora, plain.head)
