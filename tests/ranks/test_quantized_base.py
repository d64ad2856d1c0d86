"""Runs with a base in 4 bits: they train, resume with the same bits, export and merge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from runs import LORA, lines, run_recipe, small_recipe
from safetensors.torch import load_file

from cpo_ds.export.from_checkpoint import export

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (2, "bfloat16")])
def test_a_resumed_run_has_the_bits_of_a_whole_one_and_merges_into_the_base(
    tmp_path: Path, stage: int, dtype: str
) -> None:
    recipe = small_recipe(
        tmp_path,
        stage=stage,
        model={"quantization": "nf4", "dtype": dtype},
        data={"directions": ["en-de", "zh-en"]},
        lora=LORA,
        train={"max_steps": 4, "eval_every_steps": 2},
        checkpoint={"every_steps": 2},
    )
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run_recipe(recipe, whole).code == 0
    constant = ("--train.max_steps", 2, "--checkpoint.export", "false")
    schedule = ("--optim.schedule", "constant")
    assert run_recipe(recipe, halves, *schedule, *constant).code == 0
    assert "resumed from" in run_recipe(recipe, halves, *schedule).output
    same = tmp_path / "same"
    assert run_recipe(recipe, same, *schedule).code == 0
    assert lines(halves) == lines(same)
    adapters = [load_file(run / "export" / "adapter_model.safetensors") for run in (halves, same)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    # Training moved the loss, and the card says what the adapter was trained over.
    losses = [line["loss"] for line in lines(whole) if "loss" in line]
    assert np.isfinite(losses).all() and len(set(losses)) == 4
    assert "4 bits (nf4" in (whole / "export" / "README.md").read_text()

    # The checkpoint holds the adapter alone, and another kind of base does not resume it.
    saved = torch.load(
        next((whole / "checkpoints").glob("step-*4/mp_rank_00_model_states.pt")),
        weights_only=False,
    )["module"]
    assert saved and all("lora_" in name for name in saved)
    other = run_recipe(recipe, halves, "--model.quantization", "null", "--train.max_steps", 6)
    assert other.code == 2 and "its quantization (model.quantization) is 'nf4'" in other.output

    # Merged, the adapter is added to the base as its files have it.
    merged = export(whole, merge=True, say=lambda text: None)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=getattr(torch, dtype)
    )
    expected = PeftModel.from_pretrained(
        base, whole / "export", autocast_adapter_dtype=False
    ).merge_and_unload()
    actual = load_file(merged / "model.safetensors")
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(actual[name], parameter.detach(), rtol=0, atol=1e-6)


def test_dpo_reads_its_reference_from_the_base_in_4_bits(tmp_path: Path) -> None:
    recipe = small_recipe(
        tmp_path,
        stage=2,
        model={"quantization": "nf4"},
        data={"directions": ["en-de", "zh-en"]},
        lora=LORA | {"dropout": 0.0},
        loss={"name": "dpo", "reference": "adapter"},
        train={"max_steps": 2, "eval_every_steps": 1},
        checkpoint={"export": False},
    )
    precomputed = ("--loss.reference", "precomputed")
    for name, told in (("adapter", ()), ("precomputed", precomputed)):
        assert run_recipe(recipe, tmp_path / name, *told, ranks=1).code == 0
    ours, theirs = (lines(tmp_path / name) for name in ("adapter", "precomputed"))
    assert ours[0]["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    for line, other in zip(ours, theirs, strict=True):
        expected = {name: value for name, value in other.items() if isinstance(value, float)}
        numbers = {name: line[name] for name in expected}
        assert numbers == pytest.approx(expected, rel=1e-4, abs=1e-5)
