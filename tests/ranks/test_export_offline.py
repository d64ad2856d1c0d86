"""`export` makes of a checkpoint what the run itself exports, bit for bit, and refuses others."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import workers
import yaml
from export_runs import ALL_CASES, CASES, load_export
from helpers import plain_logps, random_pairs, save_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from launch import main_on_ranks, on_ranks, write_recipe
from safetensors.torch import load_file, save_file

from cpo_ds.checkpoint.manifest import read_manifest, write_manifest
from cpo_ds.errors import UserError
from cpo_ds.export.folder import plan_shards
from cpo_ds.export.from_checkpoint import export

Tensors = dict[str, torch.Tensor]
FULL, LORA = "full, untied, ZeRO-3", "LoRA, untied, ZeRO-3"
MERGEABLE = [
    "LoRA, untied, ZeRO-3",
    "LoRA, tied, ZeRO-0",
    "adapter continued, ZeRO-3",
    "adapter continued, tied, ZeRO-0",
]


def run_of(values: dict[str, Any]) -> Path:
    return Path(values["output_dir"])


def tensors_of(folder: Path) -> Tensors:
    named: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        named |= load_file(file)
    return named


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def settings_of(file: Path) -> Any:
    """JSON, lists in any order: those that PEFT writes come from sets."""
    values = json.loads(file.read_text())
    return {k: sorted(v) if isinstance(v, list) else v for k, v in values.items()}


def copy_run(values: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """A run and its base model of one's own, to be damaged; returns both folders."""
    run = shutil.copytree(run_of(values), folder / "run")
    base = shutil.copytree(values["model"]["name_or_path"], folder / "base")
    for path in (run / "checkpoints").glob("step-*"):
        manifest = read_manifest(path)
        model = manifest.configuration["model"] | {"name_or_path": str(base)}
        configuration = manifest.configuration | {"model": model}
        write_manifest(path, replace(manifest, configuration=configuration))
    return run, base


@torch.no_grad()
def logps(model: Any) -> torch.Tensor:
    return torch.cat(plain_logps(model.eval(), random_pairs(4)))


@pytest.mark.parametrize("name", ALL_CASES)
def test_it_equals_the_run_s_own_export(export_runs: Any, name: str, tmp_path: Path) -> None:
    values = export_runs[name]
    found = export(run_of(values), output=tmp_path / "export")
    online = run_of(values) / "export"
    assert {p.name for p in found.iterdir()} == {p.name for p in online.iterdir()}
    assert_same_bits(tensors_of(found), tensors_of(online))
    for file in online.glob("*.json"):
        if file.name.startswith("tokenizer"):
            assert (found / file.name).read_bytes() == file.read_bytes()
        else:
            assert settings_of(found / file.name) == settings_of(file), file.name
    assert (found / "README.md").read_text() == (online / "README.md").read_text()
    (dtype,) = {tensor.dtype for tensor in tensors_of(found).values()}
    assert dtype == getattr(torch, ALL_CASES[name].dtype)


@pytest.mark.parametrize("name", ["full, untied, ZeRO-3", "full, tied, ZeRO-0"])
def test_several_shards_hold_the_same(export_runs: Any, name: str, tmp_path: Path) -> None:
    values = export_runs[name]
    found = export(run_of(values), output=tmp_path / "export", shard_bytes=20_000)
    index = json.loads((found / "model.safetensors.index.json").read_text())
    files = sorted(found.glob("*.safetensors"))
    assert len(files) > 3 and {p.name for p in files} == set(index["weight_map"].values())
    assert not (found / "model.safetensors").exists()
    expected = tensors_of(run_of(values) / "export")
    assert_same_bits(tensors_of(found), expected)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    whole = load_export(CASES[name], values, run_of(values) / "export")
    assert torch.equal(logps(load_export(CASES[name], values, found)), logps(whole))


@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_it_is_what_peft_merges(export_runs: Any, name: str, tmp_path: Path) -> None:
    values, case = export_runs[name], CASES[name]
    found = export(run_of(values), output=tmp_path / "export", merge=True)
    assert not list(found.glob("adapter*"))
    adapted = load_export(case, values, run_of(values) / "export")
    merged = transformers.AutoModelForCausalLM.from_pretrained(found)
    assert merged.config.tie_word_embeddings == case.tied
    torch.testing.assert_close(logps(merged), logps(adapted), rtol=1e-5, atol=1e-5)
    expected = logps(adapted.merge_and_unload())
    torch.testing.assert_close(logps(merged), expected, rtol=1e-5, atol=1e-5)
    base = transformers.AutoModelForCausalLM.from_pretrained(values["model"]["name_or_path"])
    assert not torch.allclose(logps(merged), logps(base), rtol=1e-3)


def test_another_precision_is_rounded_from_the_run_s(export_runs: Any, tmp_path: Path) -> None:
    found = export(run_of(export_runs[FULL]), output=tmp_path / "export", dtype="bfloat16")
    online = tensors_of(run_of(export_runs[FULL]) / "export")
    assert_same_bits(tensors_of(found), {n: t.bfloat16() for n, t in online.items()})
    assert json.loads((found / "config.json").read_text())["dtype"] == "bfloat16"
    assert "torch.bfloat16" in (found / "README.md").read_text()


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
    found = export(run)
    assert found == run / "export-step-00000001"  # not in the place of the newest one's
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
    assert str(run.parent) not in card  # nothing of where it lay


def test_the_card_s_code_runs(export_runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (LORA, FULL):
        folder = run_of(export_runs[name]) / "export"
        code = (folder / "README.md").read_text().split("```")[1].removeprefix("python\n")
        monkeypatch.chdir(folder)
        exec(code.replace("max_new_tokens=256", "max_new_tokens=2"), {})


def test_no_room_for_it_is_said_and_leaves_nothing(export_runs: Any, tmp_path: Path) -> None:
    run = run_of(export_runs[FULL])
    for largest in (4_000, 30_000):  # neither the settings nor the weights have room
        arguments = [str(run), str(tmp_path / "export"), False, 10**9, largest]
        (done,) = on_ranks(workers.export_watched, arguments)
        assert done.code == 2, done.output
        assert "could not be written" in done.output and "Traceback" not in done.output
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_write_its_export_says_what_to_do(
    export_runs: Any, tmp_path: Path
) -> None:
    values = export_runs[FULL]
    run = shutil.copytree(run_of(values), tmp_path / "run")
    shutil.rmtree(run / "export")
    (run / "tmp-export").write_text("in the way")
    recipe = write_recipe(tmp_path, values | {"output_dir": str(run)})
    done, _ = main_on_ranks("--config", recipe, ranks=2)
    assert done.code == 2, done.output
    assert f"cpo-ds export {run}" in done.output and "step 2 is saved" in done.output
    assert not (run / "export").exists()
    (run / "tmp-export").unlink()
    assert_same_bits(tensors_of(export(run)), tensors_of(run_of(values) / "export"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Recipes of runs on a model of over 100 MB, LoRA at ZeRO-2 and full at ZeRO-3."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10}
    base = save_tiny_model(folder / "base", **sizes)
    common = {
        "model": {"name_or_path": str(base), "dtype": "float32"},
        "data": {"format": "sample", "directions": ["en-de"]},
        "batch": {"pairs": 1, "tokens_per_rank": 512},
        "train": {"max_steps": 1},
        "logging": {"tensorboard": False},
        "checkpoint": {"export": False},
    }
    lora = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}
    full = {"deepspeed": "ds_configs/zero3.json", "output_dir": str(folder / "full")}
    adapted = {"deepspeed": "ds_configs/zero2.json", "output_dir": str(folder / "lora")}
    recipes = {"full": common | full, "LoRA": common | adapted | {"lora": lora}}
    (done,) = on_ranks(workers.run_each, [list(recipes.values())])
    assert done.code == 0, done.output
    return recipes


@pytest.mark.parametrize("name", ["full", "LoRA"])
def test_memory_holds_about_a_shard(large: Any, name: str, tmp_path: Path) -> None:
    shard = 16 * 2**20
    arguments = [large[name]["output_dir"], str(tmp_path / "export"), name == "LoRA", shard, None]
    (done,) = on_ranks(workers.export_watched, arguments)
    assert done.code == 0, done.output
    size = sum(file.stat().st_size for file in (tmp_path / "export").glob("*.safetensors"))
    assert size > 120 * 2**20
    grown = json.loads((tmp_path / "export.json").read_text())["grown_bytes"]
    assert grown < 3 * shard, f"{grown / 2**20:.0f} MiB for shards of {shard / 2**20:.0f} MiB"


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(1, 60))
def test_shards_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    named = {str(i): size for i, size in enumerate(sizes)}
    shards = plan_shards(named, limit)
    assert [item for shard in shards for item in shard.items()] == list(named.items())
    assert all(shard and (len(shard) == 1 or sum(shard.values()) <= limit) for shard in shards)
    for shard, following in pairwise(shards):  # none could be fuller
        assert sum(shard.values()) + next(iter(following.values())) > limit
