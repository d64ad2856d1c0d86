"""A base in 4 bits under an adapter: log-probs and gradients against transformers and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from helpers import plain_logps, random_pairs, save_tiny_model

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.model.flops import matrix_weights
from cpo_ds.model.load import load_policy
from cpo_ds.model.offline import load_base, outline
from cpo_ds.model.policy import PolicyModel
from cpo_ds.model.quantization import quantized_names
from cpo_ds.recipe import parse_config

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}
SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}  # a row is not all one block


def config(folder: Path, dtype: str = "float32") -> Config:
    values = {
        "model": {"name_or_path": str(folder), "dtype": dtype, "quantization": "nf4"},
        "data": {"format": "sample"},
        "lora": LORA,
    }
    return parse_config(values, "test")


def load(folder: Path, dtype: str = "float32") -> PolicyModel:
    policy, _ = load_policy(config(folder, dtype), device=torch.device("cpu"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.manual_seed(3)
            torch.nn.init.normal_(parameter, 0, 0.05)
    return policy


def plain(folder: Path, trained: PolicyModel) -> Any:
    """The same model by transformers and peft alone."""
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=True,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=quantization, attn_implementation="eager"
    )
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=LORA["target_modules"]
    )
    adapted = peft.get_peft_model(model, lora)
    weights = {n: p for n, p in trained.language_model.named_parameters() if "lora" in n}
    assert not adapted.load_state_dict(weights, strict=False).unexpected_keys
    return adapted.train()


def test_log_probs_and_gradients_equal_those_of_plain_transformers_and_peft(
    tmp_path: Path,
) -> None:
    save_tiny_model(tmp_path, **SIZES)
    policy, pairs = load(tmp_path), random_pairs(5, seed=3)
    expected_model = plain(tmp_path, policy)
    expected = plain_logps(expected_model, pairs)
    chosen, rejected = policy(pack(pairs, tuple(range(5))))
    torch.testing.assert_close(chosen, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rejected, expected[1], rtol=1e-5, atol=1e-5)

    (expected[0] - 0.7 * expected[1]).square().sum().backward()
    (chosen - 0.7 * rejected).square().sum().backward()
    gradients = {n: p.grad for n, p in policy.language_model.named_parameters()}
    for name, parameter in expected_model.named_parameters():
        if parameter.grad is not None:
            difference = (gradients[name] - parameter.grad).norm() / parameter.grad.norm()
            assert difference < 1e-4, name


def test_evaluation_changes_neither_weights_nor_later_gradients(tmp_path: Path) -> None:
    """On a CPU with AVX-512 BF16 bitsandbytes would repack the weights in evaluation, for good."""
    save_tiny_model(tmp_path, **SIZES | {"intermediate_size": 128})
    policy, batch = load(tmp_path), pack(random_pairs(3, seed=5), (0, 1, 2))
    layers = [m for m in policy.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)

    def gradients() -> list[torch.Tensor]:
        policy.zero_grad()
        policy.train()(batch)[0].sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.requires_grad]

    before = gradients()
    with torch.no_grad():
        scored = policy.eval()(batch)
    torch.testing.assert_close(scored, policy.train()(batch), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_linear_layers_of_the_body_are_quantized(tmp_path: Path, dtype: str) -> None:
    save_tiny_model(tmp_path, **SIZES)
    policy = load(tmp_path, dtype)
    kinds = {p.dtype for p in policy.parameters()}
    assert kinds == {torch.uint8, getattr(torch, dtype)}
    packed = {
        name.replace("base_model.model.", "").replace(".base_layer", "")
        for name, p in policy.language_model.named_parameters()
        if p.dtype == torch.uint8
    }
    whole = load_base(config(tmp_path))
    assert packed == quantized_names(whole)
    assert not any("lm_head" in name or "embed" in name for name in packed)
    # The work of a step is that of whole matrices.
    assert matrix_weights(policy.causal_lm) == matrix_weights(
        outline(config(tmp_path)).get_base_model()
    )


def test_the_state_to_save_has_no_scales_and_the_fingerprint_is_of_the_files(
    tmp_path: Path,
) -> None:
    save_tiny_model(tmp_path, **SIZES)
    policy = load(tmp_path)
    assert set(policy.state_dict()) == {
        name for name, _ in policy.named_parameters(remove_duplicate=False)
    }
    recipe = config(tmp_path)
    in_full = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"quantization": None})}
    )
    assert policy.fingerprint == load_policy(in_full, device=torch.device("cpu"))[0].fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": None}, "freezes the weights"),
        ({"model": {"adapter": "a", "adapter_mode": "merge"}}, "merge would merge into"),
        ({"loss": {"name": "dpo"}}, "loss.reference: model would hold a second model"),
    ],
)
def test_what_needs_the_weights_as_they_were_is_refused(change: Any, message: str) -> None:
    values: dict[str, Any] = {
        "model": {"name_or_path": "m", "quantization": "nf4"} | change.pop("model", {}),
        "data": {"format": "sample"},
        "lora": LORA,
    }
    with pytest.raises(UserError, match=message):
        parse_config(values | change, "test")


def test_stage_3_is_refused_by_name(tmp_path: Path) -> None:
    recipe = config(tmp_path).model_copy(update={"deepspeed": "zero3"})
    with pytest.raises(UserError, match="stage 3, which cannot split weights of 4 bits"):
        read_deepspeed_settings(recipe)
    assert read_deepspeed_settings(recipe.model_copy(update={"deepspeed": "zero2"})).stage == 2


def test_without_bitsandbytes_a_recipe_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model(tmp_path, **SIZES)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'cpo-ds\\[quantization\\]'"):
        load(tmp_path)
