"""Any LoRA settings on any family: peft's log-probs, continued, merged and exported, or refused.

CPO_DS_ADAPTERS sets the number of examples.
"""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from adapter_kinds import CAUSAL, peft_model, save_adapter
from exported import write_export
from helpers import joined, plain_logps, random_pairs, save_tiny_model, tiny_tokenizer
from hypothesis import Phase, example, given, reject, settings
from hypothesis import strategies as st
from model_files import settings as recipe

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.errors import UserError
from cpo_ds.export.folder import Export
from cpo_ds.model.adapter import kept_weights
from cpo_ds.model.load import load_policy
from cpo_ds.model.offline import LazyMerge, load_base
from cpo_ds.recipe import parse_config

EXAMPLES = int(os.environ.get("CPO_DS_ADAPTERS", "200"))
PAIRS = random_pairs(2)
CPU = torch.device("cpu")
FAMILIES = {  # settings of a tiny model -> names of its linear layers
    ("llama", True): ("q_proj", "v_proj", "o_proj", "down_proj"),
    ("qwen2", False): ("q_proj", "v_proj", "o_proj", "down_proj"),
    ("gemma2", False): ("q_proj", "k_proj", "down_proj"),
    ("phi3", False): ("qkv_proj", "o_proj", "gate_up_proj"),
    ("cohere", False): ("q_proj", "v_proj", "down_proj"),
}
EMBEDDINGS = ("embed_tokens", "lm_head")

# peft stores the biases of such a layer under two names.
TWICE: dict[str, Any] = {
    "family": ("llama", True),
    "tied": False,
    "lora": {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["down_proj"]},
    "holds_embeddings": False,
    "mode": "continue",
}


@functools.cache
def base_model(family: tuple[str, bool], tied: bool) -> Path:
    name, with_biases = family
    biases = {"attention_bias": True, "mlp_bias": True} if with_biases else {}
    folder = Path(tempfile.mkdtemp())
    return save_tiny_model(folder, name, tie_word_embeddings=tied, num_hidden_layers=1, **biases)


@st.composite
def adapters(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of an adapter, the family and whether the head is tied."""
    family = draw(st.sampled_from(list(FAMILIES)))
    layers = FAMILIES[family]
    small = st.integers(1, 6)
    rare = st.sampled_from([False, False, False, True])
    targets = draw(st.lists(st.sampled_from(layers), min_size=1, unique=True))
    targets += draw(st.lists(st.sampled_from(EMBEDDINGS), max_size=1)) if draw(rare) else []
    lora: dict[str, Any] = {
        "r": draw(small),
        "lora_alpha": draw(small),
        "target_modules": sorted(targets),
        "use_rslora": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "none", "all", "lora_only"])),
        "rank_pattern": draw(st.dictionaries(st.sampled_from(layers), small, max_size=2)),
        "alpha_pattern": draw(st.dictionaries(st.sampled_from(layers), small, max_size=2)),
    }
    if draw(rare):
        whole = ("norm", "input_layernorm", layers[-1], *EMBEDDINGS)
        names = st.lists(st.sampled_from(whole), min_size=1, max_size=2, unique=True)
        lora["modules_to_save"] = draw(names)
    if draw(rare):
        rows = st.lists(st.integers(3, 100), min_size=1, max_size=4, unique=True)
        lora["trainable_token_indices"] = draw(rows)
    stores = draw(rare) and not set(EMBEDDINGS) & set(lora.get("modules_to_save", ()))
    return {
        "family": family,
        "tied": draw(st.booleans()),
        "lora": lora,
        "holds_embeddings": stores,
        "mode": draw(st.sampled_from(["continue", "merge"])),
    }


def refused(case: dict[str, Any]) -> str | None:
    """The text of the refusal that the settings must meet with; None if they are served."""
    lora, tied = case["lora"], case["tied"]
    targets, whole = set(lora["target_modules"]), set(lora.get("modules_to_save", ()))
    rows = "trainable_token_indices" in lora
    if rows and "embed_tokens" in whole:
        return "by modules_to_save and by trainable_token_indices"
    layers = (targets - whole) & set(EMBEDDINGS)
    if tied and (layers or (rows and whole & set(EMBEDDINGS))):
        return "which in this model are one weight|changes lm_head"
    head_changes = "lm_head" in targets | whole or (tied and rows)
    return "changes lm_head" if case["mode"] == "continue" and head_changes else None


def config_of(case: dict[str, Any], base: Path, adapter: Path) -> Config:
    values = recipe(base, adapter)
    values["model"]["adapter_mode"] = case["mode"]
    return parse_config(values, "test")


def logps(model: Any) -> torch.Tensor:
    return joined(plain_logps(model, PAIRS))


def check_exports(policy: Any, config: Config, base: Path, folder: Path) -> None:
    """Compares a changed policy with its export as an adapter, and as a merged model."""
    model = policy.language_model
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for weight in trained.values():
        weight += 0.02 * torch.randn_like(weight)
    expected = joined(policy(pack(PAIRS, tuple(range(len(PAIRS))))))
    assert config.model.adapter
    kept = kept_weights(model, config.model.adapter)
    export = Export(model, tiny_tokenizer(), str(base), "float32", "", kept)
    write_export(folder, export, trained.items())
    torch.testing.assert_close(logps(peft_model(base, folder)), expected, rtol=0, atol=1e-4)
    merge = LazyMerge(load_base(config), config, trained)
    merged = dict(merge.parameters())
    plain = transformers.AutoModelForCausalLM.from_config(merge.model.config)
    plain.load_state_dict(merged, strict=not plain.config.tie_word_embeddings)
    torch.testing.assert_close(logps(plain.eval()), expected, rtol=0, atol=1e-4)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 200,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
)
@given(case=adapters())
@example(case=TWICE)
@torch.no_grad()
def test_any_settings(case: dict[str, Any]) -> None:
    base = base_model(case["family"], case["tied"])
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = Path(name, "adapter")
        try:
            lora = peft.LoraConfig(**CAUSAL, **case["lora"])
            save_adapter(base, adapter, lora, embeddings=case["holds_embeddings"])
        except (ValueError, TypeError):  # peft itself cannot make it
            reject()
        config = config_of(case, base, adapter)
        said = refused(case)
        if said is not None:
            with pytest.raises(UserError, match=said):
                load_policy(config, device=CPU)
            return
        policy, _ = load_policy(config, device=CPU)
        served = joined(policy.eval()(pack(PAIRS, tuple(range(len(PAIRS))))))
        torch.testing.assert_close(served, logps(peft_model(base, adapter)), rtol=0, atol=1e-4)
        if case["mode"] == "continue":
            check_exports(policy, config, base, Path(name, "export"))
