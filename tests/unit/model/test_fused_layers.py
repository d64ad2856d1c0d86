"""Fused layers against the layers as transformers and PEFT write them, family by family."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fused_policies import ALL_LINEAR, largest_error, policy_with, replaced, results
from helpers import random_pairs, tiny_model
from torch import nn

from cpo_ds.data.pack import pack
from cpo_ds.errors import UserError
from cpo_ds.model import fused_layers
from cpo_ds.model.fused_layers import choose_parts, fuse_layers
from cpo_ds.model.layer_parts import EAGER, compiled_parts

CPU = torch.device("cpu")
# Family -> modules with another forward in two layers: norms with the last one, rotations, SwiGLU.
REPLACED = {
    "cohere": (0, 0, 2), "cohere2": (0, 0, 2), "gemma": (5, 0, 0), "gemma2": (9, 0, 0),
    "gemma3_text": (13, 0, 0), "granite": (5, 2, 2), "llama": (5, 2, 2), "mistral": (5, 2, 2),
    "olmo2": (9, 0, 2), "phi3": (5, 0, 0), "qwen2": (5, 2, 2), "qwen3": (9, 0, 2),
}  # fmt: skip
CASES: list[tuple[str, dict[str, Any]]] = [
    *[(family, {}) for family in REPLACED],
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
    ("mistral", {"sliding_window": 5}),
    ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}),
    ("granite", {"attention_multiplier": 0.5, "residual_multiplier": 0.7}),
    ("granite", {"embedding_multiplier": 3.0, "logits_scaling": 3.0}),
    ("gemma", {"hidden_act": "silu"}),
]
DROPOUT = ALL_LINEAR | {"dropout": 0.4}
ADAPTERS = {"full": None, "default": {"rank": 4}, "all-linear": ALL_LINEAR}
LORA = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}


def kinds(names: list[str]) -> tuple[int, int, int]:
    count = Counter(
        "norm" if "norm" in name.rpartition(".")[2] else name.rpartition(".")[2] for name in names
    )
    assert set(count) <= {"norm", "self_attn", "mlp"}
    return count["norm"], count["self_attn"], count["mlp"]


@pytest.mark.parametrize("training", ADAPTERS)
@pytest.mark.parametrize(("family", "overrides"), CASES)
def test_losses_and_gradients_equal_those_of_transformers(
    tmp_path: Path, family: str, overrides: dict[str, Any], training: str
) -> None:
    tiny_model(family, **overrides).save_pretrained(tmp_path)
    backend = "reference" if family == "gemma2" else "sdpa"
    plain, fused = (
        policy_with(tmp_path, kernels, ADAPTERS[training], attention=backend)
        for kernels in ("transformers", "eager")
    )
    assert replaced(plain) == []
    if ADAPTERS[training] is None and "hidden_act" not in overrides:
        assert kinds(replaced(fused)) == REPLACED[family]
    adapters = [m for m in fused.modules() if type(m) is peft.tuners.lora.Linear]
    assert all("forward" in vars(module) for module in adapters)
    assert bool(adapters) == (training != "full")
    assert largest_error(results(fused), results(plain)) < 2e-5
    # transformers' norms compute in float32 whatever the model's dtype, which bounds the error.
    assert largest_error(results(fused.double()), results(plain.double())) < 1e-6


def test_every_family_is_counted() -> None:
    from cpo_ds.model.load import SUPPORTED_MODEL_TYPES

    assert set(REPLACED) == set(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize("recomputes", [False, True, 1])
@pytest.mark.parametrize("lora", [None, DROPOUT], ids=["full", "lora"])
def test_recomputation_changes_no_bit(
    tmp_path: Path, recomputes: bool | int, lora: dict[str, Any] | None
) -> None:
    tiny_model().save_pretrained(tmp_path)
    plain = results(policy_with(tmp_path, "eager", lora))
    other = results(policy_with(tmp_path, "eager", lora, gradient_checkpointing=recomputes))
    assert all(torch.equal(other[name], plain[name]) for name in plain)


def test_dropout_keeps_the_same_elements_as_peft_s(tmp_path: Path) -> None:
    """In float32 both draw the same numbers on a CPU."""
    tiny_model().save_pretrained(tmp_path)
    plain, fused = (policy_with(tmp_path, k, DROPOUT) for k in ("transformers", "eager"))
    assert largest_error(results(fused), results(plain)) < 2e-5
    assert largest_error(results(fused.eval()), results(plain)) > 0.01
    assert largest_error(results(fused), results(plain.eval())) < 2e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_is_off_or_new_gives_the_base_model_s_bits(
    tmp_path: Path, dtype: str
) -> None:
    """DPO's rewards before training are exactly zero because of it."""
    tiny_model("qwen2").save_pretrained(tmp_path)
    batch = pack(random_pairs(4), (0, 1, 2, 3))
    base = policy_with(tmp_path, "eager", dtype=dtype)
    policy = policy_with(tmp_path, "eager", ALL_LINEAR, dtype=dtype).eval()
    with torch.no_grad():
        expected = base(batch)
        moved = policy(batch)
        with policy.language_model.disable_adapter():
            off = policy(batch)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        new = policy(batch)
    for number in (0, 1):
        assert not torch.equal(moved[number], expected[number])
        assert torch.equal(off[number], expected[number])
        assert torch.equal(new[number], expected[number])


def test_merging_saving_and_copying_are_unaffected(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    plain, fused = (
        policy_with(tmp_path / "base", k, ALL_LINEAR) for k in ("transformers", "eager")
    )
    assert list(plain.state_dict()) == list(fused.state_dict())
    # A copy computes with its own weights.
    expected = results(fused)
    copied = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert largest_error(results(copied), expected) == 0
    # The adapter's files, and the merged model, are those of PEFT.
    for policy, name in ((plain, "plain"), (copied, "fused")):
        policy.language_model.save_pretrained(tmp_path / name)
    files = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("plain", "fused")]
    assert files[0] == files[1]
    merged, other = (p.language_model.merge_and_unload() for p in (plain, copied))
    ids = torch.tensor([[1, 7, 9, 4]])
    for model in (merged, other):
        model.set_attn_implementation("eager")
    logits = (model(ids, use_cache=True).logits for model in (merged, other))
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


# Settings of an adapter -> whether its layers are replaced.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "rslora": ({"use_rslora": True}, True),
    "ranks by layer": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"o_proj": 3}}, True),
    "norms trained too": ({"modules_to_save": ["input_layernorm", "norm"]}, True),
    "dora": ({"use_dora": True}, False),
    "bias of B": ({"lora_bias": True, "target_modules": ["q_proj"]}, False),
    "bias of the base": ({"bias": "lora_only", "target_modules": ["q_proj", "k_proj"]}, False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_not_known_exactly_stays_with_peft(tmp_path: Path, variant: str) -> None:
    settings, is_replaced = VARIANTS[variant]
    tiny_model("qwen2").save_pretrained(tmp_path)
    plain, fused = (adapted(tmp_path, LORA | settings, fuse=fuse) for fuse in (False, True))
    adapters = [m for m in fused.modules() if isinstance(m, peft.tuners.lora.Linear)]
    assert adapters and all(("forward" in vars(m)) == is_replaced for m in adapters)
    assert largest_error(results(fused), results(plain)) < 2e-5


def adapted(folder: Path, settings: dict[str, Any], *, fuse: bool) -> Any:
    """A policy with an adapter that the recipe could not have made."""
    policy = policy_with(folder, "transformers").requires_grad_(False)
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    policy.language_model = peft.get_peft_model(policy.language_model, config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    if fuse:
        fuse_layers(policy.causal_lm.get_decoder(), EAGER)
    return policy


def test_a_second_adapter_merged_weights_and_other_precisions_go_to_peft(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    plain, fused = (adapted(tmp_path, LORA, fuse=fuse) for fuse in (False, True))
    for policy in (plain, fused):
        torch.manual_seed(2)
        second = peft.LoraConfig(init_lora_weights=False, **LORA)
        policy.language_model.add_adapter("second", second)
        policy.language_model.set_adapter("second")
    assert largest_error(results(fused), results(plain)) < 2e-5
    for policy in (plain, fused):
        policy.language_model.set_adapter("default")
        policy.language_model.merge_adapter()
    batch = pack(random_pairs(3), (0, 1, 2))
    torch.testing.assert_close(fused(batch), plain(batch), rtol=1e-5, atol=1e-5)
    # A base in half precision under an adapter in float32.
    for policy in (plain, fused):
        policy.language_model.unmerge_adapter()
        policy.bfloat16()
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    torch.testing.assert_close(fused(batch), plain(batch), rtol=0.02, atol=0.02)


def test_a_norm_in_another_precision_than_its_input_gives_transformers_precision() -> None:
    plain, fused = (tiny_model().get_decoder() for _ in range(2))
    fuse_layers(fused, EAGER)
    states = torch.randn(1, 3, 32).bfloat16()
    torch.testing.assert_close(fused.norm(states), plain.norm(states), rtol=0, atol=0)


def test_classes_of_the_same_name_from_elsewhere_are_left_alone() -> None:
    class LlamaRMSNorm(nn.Module):
        """One that subtracts the mean."""

    decoder = tiny_model().get_decoder()
    decoder.norm = LlamaRMSNorm()
    fuse_layers(decoder, EAGER)
    assert "forward" not in vars(decoder.norm)


def test_the_choice_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(fused_layers, "why_not_compiled", lambda device: None)
    assert choose_parts("auto", CPU) == (
        EAGER,
        "kernels: eager (compiled ones gain little on a CPU)",
    )
    assert choose_parts("auto", gpu)[0] is compiled_parts()
    assert choose_parts("compiled", CPU)[0] is compiled_parts()
    assert choose_parts("transformers", gpu)[0] is None
    monkeypatch.setattr(fused_layers, "why_not_compiled", lambda device: "no compiler")
    assert choose_parts("auto", gpu) == (
        EAGER,
        "kernels: eager (torch cannot compile here: no compiler)",
    )
    with pytest.raises(UserError, match="cannot compile here: no compiler"):
        choose_parts("compiled", gpu)
