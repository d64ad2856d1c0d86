"""A written export is loaded again: any changed weight, setting or token is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_faults import OF_ADAPTERS, OF_MODELS, OF_TOKENIZERS, planted
from peers.both_versions import config_of, export_of, load_model, ropes, save_base, with_adapter

from cpo_ds.export.folder import write_unfinished
from cpo_ds.export.publish import unfinished_folder
from cpo_ds.export.read_back import difference, tokenizer_difference
from cpo_ds.model.load import SUPPORTED_MODEL_TYPES
from cpo_ds.model.tokenizer import load_tokenizer


def read_back(base: Path, model: Any, fault: str | None = None) -> str | None:
    folder = base.with_name("new")
    with planted(fault):
        written = write_unfinished(folder, *export_of(base, model))
    unfinished = unfinished_folder(folder)
    return difference(unfinished, written, config_of(base)) or tokenizer_difference(
        unfinished, load_tokenizer(str(base))
    )


@pytest.mark.parametrize("family", SUPPORTED_MODEL_TYPES)
def test_every_family_is_as_it_was_written(tmp_path: Path, family: str) -> None:
    of_its_own = family in ("llama", "gemma3_text", "phi3")  # or as Llama's
    for kind in ropes(family) if of_its_own else ropes(family)[:1]:
        base = save_base(tmp_path, family, kind)
        assert read_back(base, load_model(base)) is None, kind
    assert read_back(base, with_adapter(load_model(base))) is None


def test_an_adapter_names_its_modules_in_the_same_order_in_every_process(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    model = with_adapter(load_model(base))
    names = [f"{name}_proj" for name in ("v", "up", "q", "o", "k", "gate", "down")]
    model.peft_config["default"].target_modules = set(names)  # of no order
    write_unfinished(tmp_path / "new", *export_of(base, model))
    text = (unfinished_folder(tmp_path / "new") / "adapter_config.json").read_text()
    assert json.loads(text)["target_modules"] == sorted(names)
    assert model.peft_config["default"].target_modules == set(names)


@pytest.mark.parametrize("fault", [*OF_MODELS, *OF_TOKENIZERS])
def test_a_fault_in_a_model_is_noticed(tmp_path: Path, fault: str) -> None:
    base = save_base(tmp_path, "llama")
    model = load_model(base)
    text = read_back(base, model, fault)
    assert text is not None
    assert ("rope_parameters" in text) == (fault == "other positions")
    assert ("lm_head.weight" in text) == (fault == "no head")
    assert read_back(base, model) is None


@pytest.mark.parametrize("fault", OF_ADAPTERS)
def test_a_fault_in_an_adapter_is_noticed(tmp_path: Path, fault: str) -> None:
    base = save_base(tmp_path, "llama")
    text = read_back(base, with_adapter(load_model(base)), fault)
    assert text is not None
    assert ("lora_alpha" in text) == (fault == "another scale")
