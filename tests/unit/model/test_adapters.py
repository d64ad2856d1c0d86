"""Starting adapters give the log-probs of peft alone, continued and merged, or are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from adapter_kinds import (
    ALL_KINDS,
    LORA_KINDS,
    OTHER_KINDS,
    lora,
    peft_model,
    save_adapter,
)
from helpers import joined, plain_logps, random_pairs, save_tiny_model
from model_files import change_json, settings

from cpo_ds.data.pack import pack
from cpo_ds.errors import UserError
from cpo_ds.model.adapter_checks import MERGED_KINDS
from cpo_ds.model.load import load_policy
from cpo_ds.model.offline import outline
from cpo_ds.recipe import parse_config

CPU = torch.device("cpu")
PAIRS = random_pairs(2)
MODES = ("continue", "merge")
NOT_TRAINED = "can be trained further. Set model.adapter_mode: merge"
NO_WEIGHTS = "which changes no weights"

# Kind -> the text of the refusal, by mode; kinds that are not listed are served in both.
REFUSED: dict[str, dict[str, str]] = {
    "LoRA on the head": {"continue": "changes lm_head, which is applied outside its module"},
    "LoRA and a whole head": {"continue": "changes lm_head, which is applied outside its module"},
    "LoRA with biases of its own": {"merge": "sets lora_bias, and peft cannot merge a bias"},
    "LoRA on parameters": {"continue": "sets target_parameters (updates of parameters"},
    "PiSSA": dict.fromkeys(MODES, "sets init_lora_weights to 'pissa'"),
    "aLoRA": dict.fromkeys(MODES, "sets alora_invocation_tokens (updates from some tokens"),
    "PROMPT_TUNING": dict.fromkeys(MODES, f"is of the kind PROMPT_TUNING, {NO_WEIGHTS}"),
    "PREFIX_TUNING": dict.fromkeys(MODES, f"is of the kind PREFIX_TUNING, {NO_WEIGHTS}"),
    "P_TUNING": dict.fromkeys(MODES, f"is of the kind P_TUNING, {NO_WEIGHTS}"),
    "OSF": dict.fromkeys(MODES, "is of the kind OSF, which is not served"),
    "VBLORA": dict.fromkeys(MODES, "is of the kind VBLORA, which is not served"),
    **{k: {"continue": f"of the kind {k}, and only LORA {NOT_TRAINED}"} for k in OTHER_KINDS},
}  # fmt: skip
ONE_WEIGHT = dict.fromkeys(MODES, "changes embeddings or head alone")
REFUSED_IF_TIED = REFUSED | {
    "LoRA on the embeddings": ONE_WEIGHT,
    "LoRA on the head": ONE_WEIGHT,
    "LoRA and rows for some tokens": {"continue": "changes lm_head"},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a base of a family, once."""
    made: dict[Any, Path] = {}

    def base(family: str = "llama", *, tied: bool = False, **overrides: Any) -> Path:
        key = (family, tied, *overrides.items())
        if key not in made:
            folder = tmp_path_factory.mktemp(family)
            made[key] = save_tiny_model(folder, family, tie_word_embeddings=tied, **overrides)
        return made[key]

    return base


def config_for(base: Path, adapter: Path, mode: str, **sections: Any) -> Any:
    values = settings(base, adapter, **sections)
    values["model"]["adapter_mode"] = mode
    return parse_config(values, "test")


@torch.no_grad()
def check_served(base: Path, adapter: Path, mode: str, *, changes: float = 1e-3) -> Any:
    """Compares a policy's log-probs with those of peft alone; returns the policy."""
    config = config_for(base, adapter, mode)
    policy, _ = load_policy(config, device=CPU)
    served = joined(policy.eval()(pack(PAIRS, tuple(range(len(PAIRS))))))
    expected = joined(plain_logps(peft_model(base, adapter), PAIRS))
    plain = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    torch.testing.assert_close(served, expected, rtol=0, atol=1e-4)
    assert (joined(plain_logps(plain, PAIRS)) - expected).abs().max() > changes
    assert described(outline(config), mode) == described(policy.language_model, mode)
    return policy


def described(model: Any, mode: str) -> dict[str, Any]:
    named = model.named_parameters()
    trains = mode == "continue"
    return {name: (p.shape, p.dtype, p.requires_grad and trains) for name, p in named}


def check_refused(base: Path, adapter: Path, mode: str, said: str) -> None:
    config = config_for(base, adapter, mode)
    for refuse in (lambda: load_policy(config, device=CPU), lambda: outline(config)):
        with pytest.raises(UserError, match=re.escape(f"adapter {adapter} {said}".strip())):
            refuse()


def check(base: Path, adapter: Path, mode: str, said: str | None) -> None:
    if said is None:
        check_served(base, adapter, mode)
    else:
        check_refused(base, adapter, mode, said)


def refusal(kind: str, mode: str, *, tied: bool) -> str | None:
    said = (REFUSED_IF_TIED if tied else REFUSED).get(kind, {}).get(mode)
    return said and (said if said.startswith(("is ", "sets ", "changes ")) else f"is {said}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_each_kind_is_as_peft_has_it_or_refused(
    bases: Callable[..., Path], tmp_path: Path, kind: str, mode: str
) -> None:
    base = bases()
    save_adapter(base, tmp_path / "adapter", ALL_KINDS[kind]())
    check(base, tmp_path / "adapter", mode, refusal(kind, mode, tied=False))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [*LORA_KINDS, "TRAINABLE_TOKENS"])
def test_on_tied_models_too(
    bases: Callable[..., Path], tmp_path: Path, kind: str, mode: str
) -> None:
    base = bases("gemma2", tied=True)
    save_adapter(base, tmp_path / "adapter", ALL_KINDS[kind]())
    check(base, tmp_path / "adapter", mode, refusal(kind, mode, tied=True))


def test_every_merged_kind_is_tested() -> None:
    assert set(MERGED_KINDS) == {"LORA", *OTHER_KINDS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "given", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}, {"use_dora": True}]
)
def test_biases_of_a_base_that_has_them(
    bases: Callable[..., Path], tmp_path: Path, given: dict[str, Any], mode: str
) -> None:
    base = bases(attention_bias=True, mlp_bias=True)
    save_adapter(base, tmp_path / "adapter", lora(**given))
    check_served(base, tmp_path / "adapter", mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_as_peft_adds_them(
    bases: Callable[..., Path], tmp_path: Path, mode: str, tied: bool
) -> None:
    """peft stores them beside an adapter for an enlarged vocabulary."""
    base = bases(tied=tied)
    save_adapter(base, tmp_path / "adapter", lora(), embeddings=True)
    policy = check_served(base, tmp_path / "adapter", mode)
    weights = policy.causal_lm
    assert (weights.get_input_embeddings().weight is policy.head_weight) == tied


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_the_model_has_no_room_for(
    bases: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    save_adapter(bases(num_hidden_layers=3), tmp_path / "adapter", lora())
    check_refused(bases(), tmp_path / "adapter", mode, "holds 4 weights that peft would leave out")
    save_adapter(bases(), tmp_path / "other", lora())
    with pytest.raises(UserError, match="does not hold all of its weights for this model"):
        load_policy(config_for(bases(num_hidden_layers=3), tmp_path / "other", mode), device=CPU)


@pytest.mark.parametrize("mode", MODES)
def test_a_setting_of_another_day(bases: Callable[..., Path], tmp_path: Path, mode: str) -> None:
    save_adapter(bases(), tmp_path / "adapter", lora())
    change_json(tmp_path / "adapter" / "adapter_config.json", use_better_lora=True)
    check_refused(bases(), tmp_path / "adapter", mode, "sets use_better_lora, which this peft")


@pytest.mark.parametrize(
    "given",
    [
        {"use_dora": True, "lora_dropout": 0.0},
        {"bias": "all", "lora_bias": True},
        {"trainable_token_indices": [5, 7, 40], "modules_to_save": ["norm", "o_proj"]},
        {"modules_to_save": ["embed_tokens", "mlp"], "target_modules": ["q_proj"]},
    ],
)
def test_gradients_are_those_of_peft(
    bases: Callable[..., Path], tmp_path: Path, given: dict[str, Any]
) -> None:
    base = bases(attention_bias=True, mlp_bias=True)
    save_adapter(base, tmp_path / "adapter", lora(**given))
    policy, _ = load_policy(config_for(base, tmp_path / "adapter", "continue"), device=CPU)
    joined(policy(pack(PAIRS, tuple(range(len(PAIRS)))))).sum().backward()
    adapted = peft_model(base, tmp_path / "adapter", is_trainable=True)
    joined(plain_logps(adapted, PAIRS)).sum().backward()
    expected = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    gradients = {n: p.grad for n, p in policy.language_model.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4, msg=name)
