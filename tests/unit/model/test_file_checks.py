"""Models and adapters whose files would be loaded wrongly are refused; plain ones are served."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from helpers import plain_logps, random_pairs, save_tiny_adapter, save_tiny_model
from model_files import change_json, separate_head, settings
from safetensors.torch import load_file, save_file

from cpo_ds.errors import UserError
from cpo_ds.model.file_checks import check_tied_head
from cpo_ds.model.load import load_model_config, load_policy
from cpo_ds.model.offline import outline
from cpo_ds.recipe import parse_config

CPU = torch.device("cpu")
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))


# --- adapters that are more than B·A


def other_adapter(base: Path, folder: Path, kind: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, kind)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "embed" not in name:
            torch.nn.init.normal_(parameter, 0, 0.05)
    adapted.save_pretrained(folder)


def of_lora(**options: Any) -> Callable[[Path, Path], object]:
    return lambda base, folder: save_tiny_adapter(base, folder, **options)


def of_kind(kind: Any) -> Callable[[Path, Path], object]:
    return lambda base, folder: other_adapter(base, folder, kind)


def with_embeddings(base: Path, folder: Path) -> None:
    """Saves an adapter with embeddings, as peft does for an enlarged vocabulary."""
    save_tiny_adapter(base, folder)
    file = folder / "adapter_model.safetensors"
    weights = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    name = "base_model.model.model.embed_tokens.weight"
    save_file(load_file(file) | {name: weights + 0.1}, file, metadata={"format": "pt"})


def on_embeddings(base: Path, folder: Path) -> None:
    """Saves an adapter on the embeddings without the embeddings, which peft saves by default."""
    save_tiny_adapter(base, folder, target_modules=["embed_tokens", "v_proj"])
    file = folder / "adapter_model.safetensors"
    weights = {name: w for name, w in load_file(file).items() if "lora_" in name}
    save_file(weights, file, metadata={"format": "pt"})


def with_a_setting_of_another_day(base: Path, folder: Path) -> None:
    save_tiny_adapter(base, folder)
    change_json(folder / "adapter_config.json", use_better_lora=True)


CAUSAL = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"]}
REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "DoRA": (of_lora(use_dora=True), "sets use_dora (DoRA)"),
    "biases of its own": (of_lora(lora_bias=True), "sets lora_bias (biases"),
    "biases of the base": (of_lora(bias="lora_only"), "sets bias (trained biases"),
    "token rows": (of_lora(trainable_token_indices=[5, 7]), "sets trainable_token_indices (rows"),
    "embeddings": (of_lora(modules_to_save=["embed_tokens"]), "sets modules_to_save (whole"),
    "the head": (of_lora(modules_to_save=["lm_head"]), "sets modules_to_save (whole"),
    "embeddings as peft adds them": (
        with_embeddings,
        "holds whole weights (base_model.model.model.embed",
    ),
    "on the embeddings, with these": (
        of_lora(target_modules=["embed_tokens", "v_proj"]),
        "holds whole weights (base_model.model.model.embed",
    ),
    "PiSSA": (of_lora(init_lora_weights="pissa"), "sets init_lora_weights to 'pissa'"),
    "LoHa": (of_kind(peft.LoHaConfig(r=4, **CAUSAL)), "is of the kind LOHA"),
    "IA3": (
        of_kind(peft.IA3Config(feedforward_modules=["down_proj"], **CAUSAL)),
        "is of the kind IA3",
    ),
    "prompt tuning": (
        of_kind(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        "is of the kind PROMPT_TUNING",
    ),
    "a setting of another peft": (with_a_setting_of_another_day, "sets use_better_lora, which"),
}
SERVED: dict[str, Callable[[Path, Path], object]] = {
    "plain": of_lora(),
    "rank-stabilized": of_lora(use_rslora=True),
    "ranks and scales by layer": of_lora(
        rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3}
    ),
    "on the embeddings": on_embeddings,
    "begun as Gaussian": of_lora(init_lora_weights="gaussian"),
    "on one layer": of_lora(layers_to_transform=[1]),
}


@pytest.mark.parametrize("mode", ["continue", "merge"])
@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_is_more_is_refused(
    base: Path, tmp_path: Path, case: str, mode: str
) -> None:
    make, said = REFUSED[case]
    make(base, tmp_path / "adapter")
    values = settings(base, tmp_path / "adapter")
    values["model"]["adapter_mode"] = mode
    config = parse_config(values, "test")
    refusals = [lambda: load_policy(config, device=CPU)]
    if mode == "continue":  # what an export, and the planner, builds
        refusals.append(lambda: outline(config))
    for refuse in refusals:
        with pytest.raises(UserError, match=re.escape(f"adapter {tmp_path / 'adapter'} {said}")):
            refuse()


@torch.no_grad()
@pytest.mark.parametrize("case", SERVED)
def test_plain_lora_is_merged_as_peft_does(base: Path, tmp_path: Path, case: str) -> None:
    """Negative control of the tests above: accepted adapters give peft's own log-probs."""
    SERVED[case](base, tmp_path / "adapter")
    config = parse_config(settings(base, tmp_path / "adapter"), "test")
    policy, _ = load_policy(config, device=CPU)
    merged = transformers.AutoModelForCausalLM.from_pretrained(base)
    merged.load_state_dict(policy.language_model.state_dict())
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    served = torch.cat(plain_logps(merged.eval(), random_pairs(3)))
    unadapted = torch.cat(plain_logps(plain.eval(), random_pairs(3)))
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    expected = torch.cat(plain_logps(adapted, random_pairs(3)))
    torch.testing.assert_close(served, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(served, unadapted, rtol=1e-3)


def same_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def several_files(folder: Path) -> None:
    separate_head(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"part-{'lm_head' in name}.safetensors" for name in weights}
    for file in set(files.values()):
        part = {name: weights[name] for name in weights if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    separate_head(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("change", [separate_head, several_files, pickled])
def test_wherever_the_two_lie(tmp_path: Path, change: Change) -> None:
    folder = save_tiny_model(tmp_path, tie_word_embeddings=True)
    change(folder)
    with pytest.raises(UserError, match=r"tie_word_embeddings.*lm_head\.weight that is not model"):
        check_tied_head(str(folder), load_model_config(str(folder)))
    change_json(folder / "config.json", tie_word_embeddings=False)
    check_tied_head(str(folder), load_model_config(str(folder)))


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_a_tied_head_that_is_stored_twice_is_served(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpo_ds.model.file_checks._ROWS", rows)
    folder = save_tiny_model(tmp_path, tie_word_embeddings=True)
    check_tied_head(str(folder), load_model_config(str(folder)))
    same_head(folder)
    policy, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    embeddings = policy.causal_lm.get_input_embeddings().weight
    assert policy.head_weight is embeddings


def test_padding_without_an_embedding_is_no_obstacle(tmp_path: Path) -> None:
    """Nothing is padded in training, but torch refuses to make embeddings with such an id."""
    folder = save_tiny_model(tmp_path)
    expected, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    change_json(folder / "config.json", pad_token_id=99_999)
    loaded, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    assert loaded.fingerprint == expected.fingerprint
