"""`cpo-ds export` writes the same bits as the run's own export, and refuses what does not fit."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from export_runs import ALL_CASES, CASES, load_export
from exported import assert_same_bits, copy_run, run_of, tensors_of
from helpers import joined, plain_logps, random_pairs
from safetensors.torch import load_file, save_file

from cpo_ds.checkpoint.manifest import read_manifest, write_manifest
from cpo_ds.errors import UserError
from cpo_ds.export.from_checkpoint import export

FULL, LORA = "full, untied, ZeRO-3", "LoRA, untied, ZeRO-3"
MERGEABLE = [
    "LoRA, untied, ZeRO-3",
    "LoRA, tied, ZeRO-0",
    "adapter continued, ZeRO-3",
    "adapter continued, tied, ZeRO-0",
]


def settings_of(file: Path) -> Any:
    """Settings of a JSON file with sorted lists, since PEFT writes lists from sets."""
    values = json.loads(file.read_text())
    return {k: sorted(v) if isinstance(v, list) else v for k, v in values.items()}


@torch.no_grad()
def logps(model: Any) -> torch.Tensor:
    return joined(plain_logps(model.eval(), random_pairs(4)))


@pytest.mark.parametrize("name", ALL_CASES)
def test_it_equals_the_run_s_own_export(export_runs: Any, name: str, tmp_path: Path) -> None:
    values = export_runs[name]
    exported = export(run_of(values), output=tmp_path / "export")
    online = run_of(values) / "export"
    assert {p.name for p in exported.iterdir()} == {p.name for p in online.iterdir()}
    assert_same_bits(tensors_of(exported), tensors_of(online))
    for file in online.glob("*.json"):
        if file.name.startswith("tokenizer"):
            assert (exported / file.name).read_bytes() == file.read_bytes()
        else:
            assert settings_of(exported / file.name) == settings_of(file), file.name
    assert (exported / "README.md").read_text() == (online / "README.md").read_text()
    (dtype,) = {tensor.dtype for tensor in tensors_of(exported).values()}
    assert dtype == getattr(torch, ALL_CASES[name].dtype)


@pytest.mark.parametrize("name", ["full, untied, ZeRO-3", "full, tied, ZeRO-0"])
def test_several_shards_hold_the_same(export_runs: Any, name: str, tmp_path: Path) -> None:
    values = export_runs[name]
    exported = export(run_of(values), output=tmp_path / "export", shard_bytes=20_000)
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    files = sorted(exported.glob("*.safetensors"))
    assert len(files) > 3 and {p.name for p in files} == set(index["weight_map"].values())
    assert not (exported / "model.safetensors").exists()
    expected = tensors_of(run_of(values) / "export")
    assert_same_bits(tensors_of(exported), expected)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    whole = load_export(CASES[name], values, run_of(values) / "export")
    assert torch.equal(logps(load_export(CASES[name], values, exported)), logps(whole))


@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_it_is_what_peft_merges(export_runs: Any, name: str, tmp_path: Path) -> None:
    values, case = export_runs[name], CASES[name]
    exported = export(run_of(values), output=tmp_path / "export", merge=True)
    assert not list(exported.glob("adapter*"))
    adapted = load_export(case, values, run_of(values) / "export")
    merged = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert merged.config.tie_word_embeddings == case.tied
    torch.testing.assert_close(logps(merged), logps(adapted), rtol=1e-5, atol=1e-5)
    expected = logps(adapted.merge_and_unload())
    torch.testing.assert_close(logps(merged), expected, rtol=1e-5, atol=1e-5)
    base = transformers.AutoModelForCausalLM.from_pretrained(values["model"]["name_or_path"])
    assert not torch.allclose(logps(merged), logps(base), rtol=1e-3)


def test_another_precision_is_rounded_from_the_run_s(export_runs: Any, tmp_path: Path) -> None:
    exported = export(run_of(export_runs[FULL]), output=tmp_path / "export", dtype="bfloat16")
    online = tensors_of(run_of(export_runs[FULL]) / "export")
    assert_same_bits(tensors_of(exported), {n: t.bfloat16() for n, t in online.items()})
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"
    assert "torch.bfloat16" in (exported / "README.md").read_text()


def test_it_goes_into_the_run_and_is_named_by_what_it_is(export_runs: Any, tmp_path: Path) -> None:
    run, _ = copy_run(export_runs[LORA], tmp_path)
    old = run / "checkpoints" / "step-00000001"
    shutil.copytree(run / "checkpoints" / "step-00000002", old)
    write_manifest(old, replace(read_manifest(old), step=1))
    (run / "export" / "leftover").write_text("of the export that is replaced")
    assert export(run) == run / "export"
    assert not (run / "export" / "leftover").exists()
    assert export(run, merge=True) == run / "export-merged"
    assert export(run, "1") == run / "export-step-00000001"
    assert export(old, merge=True) == run / "export-step-00000001-merged"
    assert export(run, str(old)) == run / "export-step-00000001"
    assert "| steps | 1 |" in (run / "export-step-00000001" / "README.md").read_text()
    assert not list(run.glob("tmp-*"))


def test_a_damaged_checkpoint_is_passed_over(
    export_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = copy_run(export_runs[FULL], tmp_path)
    newest = run / "checkpoints" / "step-00000002"
    old = shutil.copytree(newest, newest.with_name("step-00000001"))
    victim = next(newest.glob("*optim_states.pt"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    before = (run / "export" / "README.md").read_bytes()
    exported = export(run)
    assert exported == run / "export-step-00000001"  # not in the place of the newest one's
    assert (run / "export" / "README.md").read_bytes() == before
    said = capsys.readouterr().out
    assert victim.name in said and "step-00000001" in said
    with pytest.raises(UserError, match=victim.name):
        export(run, "2")
    (old / "manifest.json").unlink()
    with pytest.raises(UserError, match="none of the run's checkpoints is intact"):
        export(run, output=tmp_path / "none")


def test_another_base_is_refused(export_runs: Any, tmp_path: Path) -> None:
    run, base = copy_run(export_runs[LORA], tmp_path)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not those that the run began with"):
        export(run, merge=True)
    assert not (run / "export-merged").exists()
    export(run)  # an adapter alone holds nothing of the base


@pytest.mark.parametrize("layers, problem", [(3, "lacks weights"), (1, "does not have")])
@pytest.mark.parametrize("name", [FULL, LORA])
def test_a_base_of_another_shape_is_refused(
    export_runs: Any, tmp_path: Path, name: str, layers: int, problem: str
) -> None:
    run, base = copy_run(export_runs[name], tmp_path)
    config = json.loads((base / "config.json").read_text())
    config["num_hidden_layers"] = layers
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=problem):
        export(run, output=tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_what_is_there_is_not_replaced(export_runs: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="there already"):
        export(run_of(export_runs[FULL]), output=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_missing_base_is_said(export_runs: Any, tmp_path: Path) -> None:
    run, base = copy_run(export_runs[FULL], tmp_path)
    shutil.rmtree(base)
    with pytest.raises(UserError, match=re.escape(str(base))):
        export(run)


def test_the_card_says_how_the_model_came_to_be(export_runs: Any) -> None:
    run = run_of(export_runs[LORA])
    card = (run / "export" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "untied" and front["library_name"] == "peft"
    assert front["language"] == ["de", "en"]
    assert {"cpo", "translation", "lora"} <= set(front["tags"])
    assert "| LoRA | rank 4, alpha 8.0, dropout 0.05, on v_proj, down_proj |" in card
    assert "cpo (alpha 1.0, beta 0.1" in card and "| steps | 2 |" in card
    manifest = read_manifest(run / "checkpoints" / "step-00000002")
    for direction in ("de-en", "en-de"):
        counts = [str(manifest.data[kind][direction]) for kind in manifest.data]
        assert f"| {direction} | {' | '.join(counts)} |" in card
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "eval_loss" in line]
    row = f"| loss | {held_out[0]['eval_loss']:.4f} | {held_out[-1]['eval_loss']:.4f} |"
    assert row in card
    assert str(run.parent) not in card  # no path of this machine


def test_the_card_s_code_runs(export_runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (LORA, FULL):
        folder = run_of(export_runs[name]) / "export"
        code = (folder / "README.md").read_text().split("```")[1].removeprefix("python\n")
        monkeypatch.chdir(folder)
        exec(code.replace("max_new_tokens=256", "max_new_tokens=2"), {})
