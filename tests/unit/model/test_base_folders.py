"""Base folders of every kind give the log-probs of plain transformers, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from doors.folder_changes import (
    BIN,
    FILE,
    HEAD,
    added,
    changed,
    code_of_its_own,
    configured,
    pickled,
    quantized,
    save,
    shards,
    tied,
    weights_of,
)
from doors.folder_kinds import REFUSED, SERVED
from helpers import joined, plain_logps, random_pairs, save_tiny_model, tiny_config, tiny_tokenizer
from model_files import change_json, separate_head, settings

from cpo_ds.data.pack import pack
from cpo_ds.errors import UserError
from cpo_ds.model.base_checks import check_report, check_weights
from cpo_ds.model.base_settings import own_code_line, read_settings
from cpo_ds.model.load import (
    SUPPORTED_MODEL_TYPES,
    load_model_config,
    load_policy,
    read_model_config,
)
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.model.weight_files import SAMPLED_ROWS, weight_files
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs
from cpo_ds.translate.local_model import LocalModel

CPU = torch.device("cpu")
PAIRS = random_pairs(2)


@torch.no_grad()
def logps(folder: Path) -> torch.Tensor:
    """Log-probs as a run on one rank has them."""
    load_tokenizer(str(folder))
    policy, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    return joined(policy.eval()(pack(PAIRS, (0, 1))))


@torch.no_grad()
def plain(folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return joined(plain_logps(model.eval(), PAIRS))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        logps(folder)
    text = str(refused.value)
    assert "\n" not in text and text.endswith(".") and "Traceback" not in text
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


@pytest.mark.parametrize("kind", SERVED)
def test_a_folder_is_served_as_transformers_reads_it(folder: Path, kind: str) -> None:
    SERVED[kind](folder)
    torch.testing.assert_close(logps(folder), plain(folder), rtol=0, atol=1e-4)
    assert not (folder / "code-was-run").exists()


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_contradicts_itself_is_refused_by_name(folder: Path, kind: str) -> None:
    logps(folder)  # negative control: the folder is in order before the change
    change, said = REFUSED[kind]
    change(folder)
    text = refusal(folder)
    assert said in text and str(folder) in text
    assert not (folder / "code-was-run").exists()


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("model_type", [*SUPPORTED_MODEL_TYPES, "gpt2", "mixtral", "opt"])
def test_no_type_of_model_is_refused_for_its_names(
    tmp_path: Path, model_type: str, is_tied: bool
) -> None:
    """Some types rename weights, or join them, while they load; pickles have tied heads twice."""
    folder = save_tiny_model(tmp_path, model_type, tie_word_embeddings=is_tied)
    config = read_model_config(str(folder))
    check_weights(str(folder), config)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / FILE).unlink()
    save(model.state_dict(), folder / BIN)
    check_weights(str(folder), config)


def test_training_refuses_before_pairs_are_read(folder: Path) -> None:
    values = settings(folder, data={"format": "pairs", "path": str(folder / "absent.jsonl")})
    config = parse_config(values, "test")
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        prepare_pairs(config, prints_counts=False)
    added("model.layers.0.self_attn.q_proj.bias", 32)(folder)
    with pytest.raises(UserError, match=r"weights without a use"):
        prepare_pairs(config, prints_counts=False)


# --- two copies of the weights


@pytest.mark.parametrize("copy", ["pickles", "shards"])
def test_one_row_of_one_weight_tells_two_copies_apart(folder: Path, copy: str) -> None:
    (pickled if copy == "pickles" else shards)(folder, keeps_file=True)
    logps(folder)
    weights = weights_of(folder)
    rows = len(weights[HEAD])
    weights[HEAD][rows // SAMPLED_ROWS * 5] += 0.01
    save(weights, folder / FILE)
    assert f"other weights ({HEAD})" in refusal(folder)


def test_copies_in_other_precisions_are_equal_if_rounding_makes_them_so(folder: Path) -> None:
    weights = weights_of(folder)
    save({name: weight.bfloat16() for name, weight in weights.items()}, folder / BIN)
    torch.testing.assert_close(logps(folder), plain(folder), rtol=0, atol=1e-4)
    save({name: (1.02 * weight).bfloat16() for name, weight in weights.items()}, folder / BIN)
    assert "holds two models" in refusal(folder)


def test_the_file_that_is_read_is_that_of_transformers(folder: Path) -> None:
    """Both copies exist; the weights come from the one that the message names."""
    before = plain(folder)
    pickled(folder, scale=2, keeps_file=True)
    assert torch.equal(plain(folder), before)
    assert weight_files(str(folder)).first.name == FILE
    assert "transformers reads model.safetensors, beside" in refusal(folder)


# --- weights that do not fit


def test_plain_loading_takes_one_of_two_weights_silently(folder: Path) -> None:
    """Which one differs by ZeRO stage."""
    added("layers.0.mlp.gate_proj.weight", 48, 32)(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert (model.model.layers[0].mlp.gate_proj.weight == 1).all()
    assert "two weights that transformers reads as model.layers.0.mlp" in refusal(folder)


def test_all_that_is_wrong_with_the_names_is_told_at_once(folder: Path) -> None:
    changed(lambda w: w.update({"model.layers.0.mlp.gate.weight": w.pop(next(iter(w)))}))(folder)
    configured(intermediate_size=64)(folder)
    text = refusal(folder)
    for part in ("lacks 1 of", "has another shape of", "holds 1 weights without a use"):
        assert part in text


def test_the_report_after_loading_is_checked_too() -> None:
    fine: dict[str, Any] = {
        "missing_keys": set(),
        "unexpected_keys": set(),
        "mismatched_keys": set(),
    }
    check_report("a-model", fine)
    for kind, name in (
        ("missing_keys", "a"),
        ("unexpected_keys", "a"),
        ("mismatched_keys", ("a", torch.Size([1]), torch.Size([2]))),
    ):
        with pytest.raises(UserError, match=r"the model in a-model .*\(a\)"):
            check_report("a-model", fine | {kind: {name}})


@pytest.mark.parametrize("tokens", [7, 4096, 5000])
def test_a_tied_head_is_compared_in_all_rows(tmp_path: Path, tokens: int) -> None:
    folder = save_tiny_model(tmp_path, vocab_size=tokens, tie_word_embeddings=True)
    separate_head(folder)
    weights = weights_of(folder)
    weights[HEAD] = weights["model.embed_tokens.weight"].clone()
    save(weights, folder / FILE)
    config = load_model_config(str(folder))
    check_weights(str(folder), config)
    weights[HEAD][tokens - 1] += 1e-3
    save(weights, folder / FILE)
    with pytest.raises(UserError, match=r"tie_word_embeddings.*lm_head\.weight that is not model"):
        check_weights(str(folder), config)
    change_json(folder / "config.json", tie_word_embeddings=False)
    check_weights(str(folder), load_model_config(str(folder)))


@pytest.mark.parametrize("change", [shards, pickled])
def test_a_tied_head_of_its_own_wherever_it_lies(tmp_path: Path, change: Any) -> None:
    folder = save_tiny_model(tmp_path)
    tied(separate_head)(folder)
    change(folder)
    assert "contradicts itself" in refusal(folder)


def test_padding_without_an_embedding_is_no_obstacle(folder: Path) -> None:
    """Nothing is padded in training, but torch refuses to make embeddings with such an id."""
    expected, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    change_json(folder / "config.json", pad_token_id=99_999)
    loaded, _ = load_policy(parse_config(settings(folder), "test"), device=CPU)
    assert loaded.fingerprint == expected.fingerprint


# --- quantized models


def test_candidates_are_translated_by_quantized_models_too(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain_folder = save_tiny_model(
        tmp_path / "plain", hidden_size=64, head_dim=16, intermediate_size=64
    )
    in_4_bits = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain_folder, quantization_config=in_4_bits
    )
    model.save_pretrained(tmp_path / "quantized")
    tiny_tokenizer().save_pretrained(tmp_path / "quantized")
    assert "names the method bitsandbytes" in refusal(tmp_path / "quantized")
    tokenizer = tiny_tokenizer()
    ids = tokenizer("the old house")["input_ids"]
    local = LocalModel(str(tmp_path / "quantized"), None, "float32", tokenizer, CPU)
    (translation,) = local.translate([ids], 0, max_new_tokens=6, do_sample=False)
    alone = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "quantized", dtype=torch.float32
    )
    made = alone.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert translation.text == tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)


def test_a_library_of_quantized_models_that_is_missing_is_told(folder: Path) -> None:
    quantized(quant_method="gptq", bits=4)(folder)
    with pytest.raises(UserError, match=r"cannot be read: .*(optimum|gptqmodel)"):
        LocalModel(str(folder), None, "float32", tiny_tokenizer(), CPU)


# --- code, and models of several parts


def test_the_log_says_that_code_is_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(settings(folder), "test")
    prepare_pairs(config, prints_counts=True)
    assert "auto_map" not in capsys.readouterr().out
    code_of_its_own("llama")(folder)
    prepare_pairs(config, prints_counts=True)
    line = own_code_line(str(folder), read_settings(str(folder)))
    assert line and line in capsys.readouterr().out
    assert "is not run: transformers' own llama is used" in line


def test_a_model_that_sees_is_refused_and_its_text_part_served(tmp_path: Path) -> None:
    """The way out that docs/models.md names."""
    text = tiny_config("gemma3_text", vocab_size=len(tiny_tokenizer()))
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    vision = transformers.SiglipVisionConfig(
        num_hidden_layers=1, image_size=28, patch_size=14, **sizes
    )
    both = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(0)
    transformers.Gemma3ForConditionalGeneration(both).save_pretrained(tmp_path / "whole")
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    assert "Its text part (gemma3_text) can be trained" in refusal(tmp_path / "whole")

    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto")
    part = transformers.AutoModelForCausalLM.from_config(whole.config.text_config)
    part.model, part.lm_head = whole.model.language_model, whole.lm_head
    part.save_pretrained(tmp_path / "part")
    tiny_tokenizer().save_pretrained(tmp_path / "part")
    torch.testing.assert_close(
        logps(tmp_path / "part"), plain(tmp_path / "whole"), rtol=0, atol=1e-4
    )


def test_a_name_of_the_hub_is_no_folder() -> None:
    with pytest.raises(UserError, match="there is no model no-one/no-such-model"):
        read_settings("no-one/no-such-model")
    with pytest.raises(UserError, match="there is no model no-one/no-such-model"):
        weight_files("no-one/no-such-model")
