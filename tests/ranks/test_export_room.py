"""Exports without room on the disk, and with little memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from exported import assert_same_bits, run_of, tensors_of
from helpers import save_tiny_model
from launch import main_on_ranks, on_ranks, write_recipe
from workers import loading, training

from cpo_ds.export.from_checkpoint import export

FULL = "full, untied, ZeRO-3"


def test_no_room_for_it_is_said_and_leaves_nothing(export_runs: Any, tmp_path: Path) -> None:
    run = run_of(export_runs[FULL])
    for largest in (4_000, 30_000):  # neither the settings nor the weights have room
        arguments = [str(run), str(tmp_path / "export"), False, 10**9, largest]
        (done,) = on_ranks(loading.export_watched, arguments)
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
    (done,) = on_ranks(training.run_each, [list(recipes.values())])
    assert done.code == 0, done.output
    return recipes


@pytest.mark.parametrize("name", ["full", "LoRA"])
def test_memory_holds_about_a_shard(large: Any, name: str, tmp_path: Path) -> None:
    shard = 16 * 2**20
    arguments = [large[name]["output_dir"], str(tmp_path / "export"), name == "LoRA", shard, None]
    (done,) = on_ranks(loading.export_watched, arguments)
    assert done.code == 0, done.output
    size = sum(file.stat().st_size for file in (tmp_path / "export").glob("*.safetensors"))
    assert size > 120 * 2**20
    grown = json.loads((tmp_path / "export.json").read_text())["grown_bytes"]
    assert grown < 3 * shard, f"{grown / 2**20:.0f} MiB for shards of {shard / 2**20:.0f} MiB"
