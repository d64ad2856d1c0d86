"""The packed, shared-prefix forward pass against transformers' own, family by family."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers import plain_logps, random_pairs, save_tiny_adapter, save_tiny_model, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from cpo_ds.data.pack import pack
from cpo_ds.errors import UserError
from cpo_ds.model.attention import registered_name
from cpo_ds.model.load import SUPPORTED_MODEL_TYPES, load_policy
from cpo_ds.model.policy import PolicyModel, _sums_by_pair
from cpo_ds.recipe import parse_config


def load(folder: Path, lora: dict | None = None, **model: object) -> PolicyModel:
    values = {
        "model": {"name_or_path": str(folder), "dtype": "float32", **model},
        "data": {"format": "sample"},
        "lora": lora,
    }
    policy, _ = load_policy(parse_config(values, "test"), device=torch.device("cpu"))
    return policy


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp(min=1e-30)).item()


FAMILIES = [(name, {}) for name in SUPPORTED_MODEL_TYPES] + [
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 7}),
    ("gemma3_text", {"sliding_window": 5}),
    (
        "gemma2",
        {"sliding_window": 6, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    ),
    ("granite", {"logits_scaling": 3.0}),
    ("cohere", {"logit_scale": 0.4}),
]


@pytest.mark.parametrize("backend", ["reference", "sdpa", "blocks"])
@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_log_probs_and_gradients_equal_those_of_plain_transformers(
    tmp_path: Path, family: str, overrides: dict, backend: str
) -> None:
    plain = tiny_model(family, **overrides)
    if backend != "reference" and getattr(plain.config, "attn_logit_softcapping", None):
        pytest.skip(f"{backend} refuses soft-capped scores")
    plain.save_pretrained(tmp_path)
    plain.set_attn_implementation("eager")
    policy = load(tmp_path, attention=backend, head_chunk_tokens=7)
    pairs = random_pairs(5, seed=3)

    expected = plain_logps(plain, pairs)
    chosen, rejected = policy(pack(pairs, tuple(range(5))))
    torch.testing.assert_close(chosen, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rejected, expected[1], rtol=1e-5, atol=1e-5)

    (expected[0] - 0.7 * expected[1]).square().sum().backward()
    (chosen - 0.7 * rejected).square().sum().backward()
    trained = dict(policy.causal_lm.named_parameters())
    assert trained
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert relative_error(trained[name].grad, parameter.grad) < 1e-4, name


def test_negative_control_branches_that_see_each_other_differ(tmp_path: Path) -> None:
    plain = tiny_model("llama")
    plain.save_pretrained(tmp_path)
    policy = load(tmp_path)
    pairs = random_pairs(4, seed=5, sharing="prompt")
    batch = pack(pairs, (0, 1, 2, 3))
    right_chosen, right_rejected = policy(batch)
    whole = tuple((p + c + r, 0, 0) for p, c, r in batch.segment_lengths)
    wrong_chosen, wrong_rejected = policy(type(batch)(**{**vars(batch), "segment_lengths": whole}))
    assert (wrong_rejected - right_rejected).abs().max() > 0.05
    torch.testing.assert_close(wrong_chosen, right_chosen)


def test_frozen_head_gets_no_gradient_and_the_body_the_same_one(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    batch = pack(random_pairs(3), (0, 1, 2))
    trained, frozen = load(tmp_path), load(tmp_path)
    frozen.head_weight.requires_grad_(False)
    for policy in (trained, frozen):
        chosen, rejected = policy(batch)
        (chosen.sum() - 2 * rejected.sum()).backward()
    assert frozen.head_weight.grad is None and trained.head_weight.grad is not None
    for (name, a), (_, b) in zip(
        trained.named_parameters(), frozen.named_parameters(), strict=True
    ):
        if b.grad is not None:
            assert relative_error(b.grad, a.grad) < 1e-5, name


@pytest.mark.parametrize("trained", ["all parameters", "a new adapter", "a continued adapter"])
def test_a_policy_is_loaded_in_training_mode_and_recomputes(tmp_path: Path, trained: str) -> None:
    """transformers loads models in evaluation mode, and a run may never evaluate and come back."""
    base = save_tiny_model(tmp_path / "base")
    adapter = save_tiny_adapter(base, tmp_path / "adapter") if "continued" in trained else None
    options = {"adapter": str(adapter)} if adapter else {}
    lora = {"rank": 2} if "new" in trained else None
    policy = load(base, lora, gradient_checkpointing=True, **options)
    assert all(module.training for module in policy.modules())

    calls = []
    layers = policy.causal_lm.get_decoder().layers
    for layer in layers:
        layer.self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    chosen, rejected = policy(pack(random_pairs(2), (0, 1)))
    assert len(calls) == len(layers)
    (chosen.sum() - rejected.sum()).backward()
    assert len(calls) == 2 * len(layers)


@pytest.mark.parametrize("sharing", ["prompt", "none"])
@pytest.mark.parametrize("checkpointing", [False, True, 1])
def test_sharing_and_gradient_checkpointing_change_nothing(
    tmp_path: Path, sharing: str, checkpointing: bool | int
) -> None:
    model = tiny_model("qwen3").double()
    model.save_pretrained(tmp_path)
    results = []
    for how, recompute in (("common", False), (sharing, checkpointing)):
        policy = load(tmp_path, gradient_checkpointing=recompute).double().train()
        chosen, rejected = policy(pack(random_pairs(6, sharing=how), tuple(range(6))))
        (chosen.square().sum() - rejected.sum()).backward()
        gradients = [p.grad for p in policy.parameters() if p.grad is not None]
        results.append((chosen, rejected, torch.cat([g.flatten() for g in gradients])))
    *first, first_gradient = results[0]
    *second, second_gradient = results[1]
    assert first[0].dtype == torch.float64
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    # transformers' norms work in float32 whatever the model's dtype, which bounds the gradient.
    assert relative_error(second_gradient, first_gradient) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_any_number_of_recomputed_layers_gives_the_same_bits(
    tmp_path: Path, dropout: float
) -> None:
    tiny_model("llama", num_hidden_layers=4).save_pretrained(tmp_path)
    lora = {"rank": 4, "alpha": 8, "dropout": dropout, "target_modules": ["down_proj"]}
    results = []
    for layers in (0, 1, 3, 4, True):
        policy = load(tmp_path, lora=lora, gradient_checkpointing=layers).train()
        decoder = policy.causal_lm.get_decoder().layers
        recompute = [layer.gradient_checkpointing for layer in decoder]
        count = 4 if layers is True else layers
        assert recompute == [True] * count + [False] * (4 - count)
        torch.manual_seed(5)
        with torch.no_grad():  # a new adapter changes nothing
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        chosen, rejected = policy(pack(random_pairs(6), tuple(range(6))))
        (chosen.square().sum() - rejected.sum()).backward()
        gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        results.append((chosen, rejected, torch.cat(gradients)))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_more_recomputed_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    tiny_model("llama", num_hidden_layers=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is 3, but the model has 2 layers"):
        load(tmp_path, gradient_checkpointing=3)


def test_attention_is_registered_with_transformers_and_models_stay_unpatched(
    tmp_path: Path,
) -> None:
    plain = tiny_model("llama")
    before = copy.deepcopy(type(plain.model.layers[0].self_attn).forward)
    plain.save_pretrained(tmp_path)
    policy = load(tmp_path)
    assert policy.causal_lm.config._attn_implementation == registered_name("sdpa")
    assert type(policy.causal_lm.model.layers[0].self_attn).forward.__code__ == before.__code__


class Operations(TorchDispatchMode):
    """Remembers the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func._schema.name.removeprefix("aten::").rstrip("_"))
        return func(*args, **(kwargs or {}))


def test_sums_by_pair_use_no_operation_that_adds_in_any_order_on_a_gpu() -> None:
    batch = pack(random_pairs(7, seed=4), (4, 0, 6, 1))
    logps = torch.randn(len(batch.score_pairs), dtype=torch.float64, requires_grad=True)
    with Operations() as operations:
        (sums,) = _sums_by_pair([logps], batch)
        sums.backward(torch.arange(1.0, 5.0, dtype=torch.float64))
    assert not operations.names & {"index_add", "scatter_add", "index_put", "cumsum"}
    expected = logps.new_zeros(4).index_add(0, batch.score_pairs, logps.detach())
    torch.testing.assert_close(sums.detach(), expected)
    assert torch.equal(logps.grad, batch.score_pairs + 1.0)


def test_a_pair_that_is_not_finite_leaves_the_sums_of_others_alone() -> None:
    batch = pack(random_pairs(3, seed=4), (0, 1, 2))
    logps = torch.where(batch.score_pairs == 1, torch.nan, 1.0)
    assert _sums_by_pair([logps], batch)[0].isfinite().tolist() == [True, False, True]
